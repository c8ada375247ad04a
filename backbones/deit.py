"""DeiT (Touvron et al., ICML 2021), arXiv 2012.12877: a plain vision transformer.

Patches of 16 x 16 pixels and a class token, a learned position for each, blocks of global
attention. One stride throughout.

Official code: facebookresearch/deit, which is timm's; same names and numbers, without
distillation. A classifier of one size; the dense form is ours: any size, images padded with
zeros, below and right, to multiples of 32, positions resampled (bicubic), the class token kept
but not read. Maps end the four quarters of the blocks; a ``Pyramid`` with BatchNorm brings them
to strides 4, 8, 16, 32.

variant  parameters  GMACs 224    512  800x1280  ImageNet-1K top-1 (published)
tiny          6.0 M       1.43   11.3      99.1  72.2
small        23.4 M       5.29   35.4     247.8  79.9
base         92.9 M      20.34  121.5     693.9  81.8

Of these the pyramid has 0.4, 1.8, 7.1 M parameters. Published dense results: nothing found.
"""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from timm.layers import Attention, DropPath, Mlp, trunc_normal_
from torch import Tensor, nn

from .base import Backbone
from .errors import UserError
from .graftable import Graftable
from .layers import Pyramid, resize_flat_table, resize_table
from .registry import register

PATCH = 16
MULTIPLE = 32  # of which both sides are, after padding

_BLOCK = re.compile(r'blocks\.(\d+)\.')


class Block(Graftable):
    """Global attention and MLP, each behind a norm and with a skip. B x tokens x C.

    Args:
        dim, heads: channels and heads.
        drop_path: rate.
        expand: width of the MLP, in ``dim``.
        act: its activation.
        eps: of the norms.
    """

    def __init__(self, dim: int, heads: int, drop_path: float, expand: int = 4,
                 act: Callable[[], nn.Module] = nn.GELU, eps: float = 1e-6):
        super().__init__(dim, heads, eps=eps)
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, expand * dim, act_layer=act)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        u = self.norm1(x)
        x = x + self.drop_path(self.attn(u))
        if self.graft is not None:
            x = x + self.drop_path(self.graft_tokens(u, size))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class DeiT(Backbone):
    """DeiT as a dense backbone, strides 4, 8, 16, 32 by a ``Pyramid``.

    Args:
        arch: 'tiny', 'small', 'base', or a dict of dim, depths (of the quarters), heads,
            img_size (the side of square images that the positions are of).
        drop_path_rate: of the last block; grows linearly from 0.
        pyramid: False returns the maps as they are, all of stride 16.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``; a stage is
            a quarter of the blocks. Of the pyramid only the BatchNorm is frozen, with the
            stage whose map it sees.

    Raises:
        UserError: img_size is no multiple of 16; a distilled checkpoint.
    """

    added = ('pyramid.',)

    def __init__(self, arch: str | dict = 'tiny', out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.1, pyramid: bool = True, frozen_stages: int = -1,
                 norm_eval: bool = False, with_cp: bool = False, init_cfg: dict | None = None,
                 **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        if arch['img_size'] % PATCH:
            raise UserError(f'DeiT: img_size must be a multiple of {PATCH}, got '
                            f'{arch["img_size"]}')
        dim, self.depths = arch['dim'], arch['depths'][:self.out_indices[-1] + 1]
        self.out_channels = (dim,) * len(self.out_indices)
        self.out_strides = tuple(4 * 2 ** i if pyramid else PATCH for i in self.out_indices)
        self.taps = [sum(self.depths[:i + 1]) for i in self.out_indices]

        self.patch_embed = nn.ModuleDict(dict(proj=nn.Conv2d(3, dim, PATCH, PATCH)))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (arch['img_size'] // PATCH) ** 2, dim))
        rates = torch.linspace(0, drop_path_rate, sum(arch['depths']), device='cpu').tolist()
        self.blocks = nn.ModuleList(Block(dim, arch['heads'], rate)
                                    for rate in rates[:self.num_layers])
        if pyramid:
            self.pyramid = Pyramid(dim, PATCH, self.out_indices, norm=nn.BatchNorm2d)

        for table in (self.cls_token, self.pos_embed):
            trunc_normal_(table, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        x = self.patch_embed['proj'](x)
        size = x.shape[2:]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
        x = x + self.positions(size)
        maps = []
        for number, block in enumerate(self.blocks, 1):
            x = self.run(block, x, size)
            if number in self.taps:
                maps.append(x[:, 1:].transpose(1, 2).unflatten(2, size))
        if hasattr(self, 'pyramid'):
            maps = self.pyramid(maps)
        return tuple(y[..., :-(-height // stride), :-(-width // stride)].contiguous()
                     for y, stride in zip(maps, self.out_strides))

    def positions(self, size: tuple[int, int]) -> Tensor:
        """Of the class token and a map of H x W patches: (1 + H * W) x C."""
        token, table = self.pos_embed[0].tensor_split([1])
        side = math.isqrt(len(table))
        table = resize_table(table.unflatten(0, (side, side)), size)
        return torch.cat([token, table.flatten(0, 1)])

    def stage_id(self, name: str) -> int:
        if match := _BLOCK.match(name):
            block = int(match[1])
            return next(i for i in range(1, len(self.depths) + 1) if block < sum(self.depths[:i]))
        # What the batch moves between two transposed convolutions: a frozen stage's map must not
        # follow it. Only the level of stride 4 has it.
        if name.startswith('pyramid.scales.0.1.'):
            return 1
        return len(self.depths) + 1 if name.startswith(('pyramid.', 'blocks.')) else 0

    def layer_id(self, name: str) -> int:
        if match := _BLOCK.match(name):
            return int(match[1]) + 1
        return self.num_layers + 1 if name.startswith('pyramid.') else 0

    def no_weight_decay(self) -> set[str]:
        return {'cls_token', 'pos_embed'}

    @staticmethod
    def convert(state: dict[str, Tensor], net: Backbone) -> dict[str, Tensor]:
        """Official names are ours; the classifier goes with its norm. Positions of another
        image size are resampled."""
        if 'dist_token' in state:
            raise UserError('DeiT: these weights are of a distilled network, which has one token '
                            'more; choose those without "distilled" in their name')
        converted = {name: tensor for name, tensor in state.items()
                     if not name.startswith(('norm.', 'head.'))}
        if 'pos_embed' in converted:
            token, table = converted['pos_embed'][0].tensor_split([1])
            table = resize_flat_table(table, net.state_dict()['pos_embed'][0, 1:])
            converted['pos_embed'] = torch.cat([token, table])[None]
        return converted

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        """The official cases came as hosts of GrafT, without a graft; they tap the raw maps."""
        return dict(arch='tiny' if variant == 'host_deit_t' else variant, pyramid=False)


ARCHS = dict(
    tiny=dict(dim=192, depths=(3, 3, 3, 3), heads=3, img_size=224),
    small=dict(dim=384, depths=(3, 3, 3, 3), heads=6, img_size=224),
    base=dict(dim=768, depths=(3, 3, 3, 3), heads=12, img_size=224),
)
register(DeiT, ARCHS)
