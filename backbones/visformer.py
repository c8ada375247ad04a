"""Visformer (Chen et al., ICCV 2021), arXiv 2104.12533; V2 is in its later versions.

BatchNorm everywhere, a 7 x 7 stem, a patch embedding before every stage. The last two stages
attend, those before them are MLPs with a grouped 3 x 3 convolution inside.

- Swin-Visformer, four stages: the network of the authors' detectors. Windows of 14 and 7 with
  a relative position bias, shifted in every other block of the whole network; a fresh
  BatchNorm on every output. Zeros that pad a map to whole windows stay as keys. The position
  embeddings of ImageNet training, and its windows that cover the map, are left behind.
- Plain Visformer, three stages of strides 8, 16, 32: the classifier. Attention over the whole
  map, position embeddings (resampled bilinearly to the map: ours), bare outputs.

Official code: danczs/Visformer, danczs/Swin-Visformer-Object-Detection. Same numbers; same
names, but for the wrapper of every BatchNorm. Differs from it: works channels-last, which is
faster; fused attention; the bias without an index table; residual branches start weaker, or
else activations would explode before BatchNorm has statistics; frozen stages are frozen.

variant          parameters  GMACs 224  512   800x1280  ImageNet-1K top-1 (published)
swin_tiny_v2          8.7 M       1.28   7.1      26.5  79.6
swin_small_v2        22.7 M       4.27  23.4      88.1  83.0
swin_medium_v2       43.2 M       8.45  45.7     174.0  83.6
swin_small (V1)      39.2 M       4.90  26.1     100.4  82.3
plain_tiny            9.9 M       1.27   8.1      52.2  78.6
plain_small          39.5 M       4.88  28.4     152.2  82.2

Published with swin_small_v2 (README of danczs/Visformer): Mask R-CNN 44.8 box, 40.7 mask AP
(1x), 47.8, 42.5 (3x); Cascade Mask R-CNN 49.3, 42.3 (1x, multi-scale), 51.6, 44.1 (3x). With
swin_small: Mask R-CNN 43.0, 39.6 (1x).
"""
from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

from .base import Backbone
from .errors import UserError
from .layers import in_windows, resize_flat_table, resize_table, shift_mask, window_bias
from .registry import register

_TABLE = 'relative_position_bias_table'
_STAGE = re.compile(r'(?:patch_embed|pos_embed|stage|norm)(\d)')
_BLOCK = re.compile(r'stage\d\.(\d+)\.')


class Attention(nn.Module):
    """Multi-head attention over a map or inside windows, shifted where a mask is given.

    Args:
        dim: channels, in and out: B x C x H x W.
        heads: consecutive slices of the channels.
        window: side of a window, with a relative position bias; 0 for the whole map.
        qk_power: queries and keys are both multiplied by this power of a head's channels.
    """

    def __init__(self, dim: int, heads: int, window: int, qk_power: float):
        super().__init__()
        self.heads = heads
        self.window = window
        self.scale = (dim // heads) ** (2 * qk_power)
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.proj = nn.Conv2d(dim, dim, 1, bias=False)
        if window:
            self.relative_position_bias_table = nn.Parameter(
                torch.zeros((2 * window - 1) ** 2, heads))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        # The convolution has no bias: padding its result is padding its input.
        qkv = self.qkv(x).permute(0, 2, 3, 1)
        if self.window:
            shift = 0 if mask is None else self.window // 2
            out = in_windows(lambda t: self.attend(t, mask), qkv, self.window, shift)
        else:
            out = self.attend(qkv.flatten(1, 2), None).unflatten(1, x.shape[2:])
        return self.proj(out.permute(0, 3, 1, 2))

    def attend(self, qkv: Tensor, mask: Tensor | None) -> Tensor:
        """N x tokens x 3C -> N x tokens x C."""
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = None
        if self.window:
            bias = window_bias(self.relative_position_bias_table, mask, len(q)).to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, bias, scale=self.scale)
        return out.transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Two 1 x 1 convolutions; where ``spatial``, a grouped 3 x 3 between. B x C x H x W."""

    def __init__(self, dim: int, spatial: bool):
        super().__init__()
        hidden = dim * (2 if spatial else 4)
        self.conv1 = nn.Conv2d(dim, hidden, 1, bias=False)
        self.conv2 = (nn.Conv2d(hidden, hidden, 3, padding=1, groups=8, bias=False) if spatial
                      else None)
        self.conv3 = nn.Conv2d(hidden, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.conv1(x))
        if self.conv2:
            x = F.gelu(self.conv2(x))
        return self.conv3(x)


class Block(nn.Module):
    """Attention and MLP, or a convolutional MLP alone, behind norms. B x C x H x W."""

    def __init__(self, dim: int, attn: Attention | None, drop_path: float):
        super().__init__()
        if attn:
            self.norm1 = nn.BatchNorm2d(dim)
        self.attn = attn
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = Mlp(dim, spatial=attn is None)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.attn:
            x = x + self.drop_path(self.attn(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def patch_embed(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Patches without overlap; what is left of a row or column of patches is lost."""
    return nn.Sequential(OrderedDict(proj=nn.Conv2d(inputs, outputs, stride, stride),
                                     norm=nn.BatchNorm2d(outputs)))


def resample(embedding: Tensor, size: tuple[int, int]) -> Tensor:
    """A position embedding, 1 x C x H x W, for a map of another size."""
    return resize_table(embedding[0].permute(1, 2, 0), size, 'bilinear').permute(2, 0, 1)[None]


class Visformer(Backbone):
    """Visformer as a dense backbone: strides 4, 8, 16, 32; the plain one 8, 16, 32.

    Args:
        arch: 'swin_tiny_v2', 'swin_small_v2', 'swin_medium_v2', 'swin_small', 'plain_tiny',
            'plain_small', or a dict of stem and dim (channels, dim of the first stage),
            depths, heads (0: a convolutional stage), windows (0: the whole map), qk_power
            (see ``Attention``), img_size (H, W to which position embeddings belong; None:
            there are none) and out_norm (a norm on every output).
        out_indices: default all stages.
        drop_path_rate: of the last block; grows linearly from 0.
        frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``. A stage is frozen with
            its patch embedding and its output norm.
    """

    added = ('norm',)
    size_rule = 'either'  # the stem rounds up, the patch embeddings down

    def __init__(self, arch: str | dict = 'swin_tiny_v2',
                 out_indices: Sequence[int] | None = None, drop_path_rate: float = 0.2,
                 frozen_stages: int = -1, norm_eval: bool = False, with_cp: bool = False,
                 init_cfg: dict | None = None, **overrides):
        super().__init__((0,) if out_indices is None else out_indices, frozen_stages, norm_eval,
                         with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        stages = len(arch['depths'])
        if {len(arch['heads']), len(arch['windows'])} != {stages}:
            raise UserError(f'Visformer: heads {arch["heads"]} and windows {arch["windows"]} need '
                            f'one entry for each of the depths {arch["depths"]}')
        if out_indices is None:
            self.out_indices = tuple(range(stages))
        last = self.out_indices[-1]
        self.depths = arch['depths'][:last + 1]
        self.windows = arch['windows'][:last + 1]
        # In official names a stage has its place among the strides 4, 8, 16, 32.
        self.first = 4 - stages
        dims = [arch['dim'] * 2 ** i for i in range(stages)]
        strides = [32 // 2 ** i for i in reversed(range(stages))]
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.out_strides = tuple(strides[i] for i in self.out_indices)

        rates = iter(torch.linspace(0, drop_path_rate, sum(arch['depths']), device='cpu').tolist())
        self.stem = nn.Sequential(nn.Conv2d(3, arch['stem'], 7, 2, padding=3, bias=False),
                                  nn.BatchNorm2d(arch['stem']), nn.ReLU(inplace=True))
        inputs, stride = arch['stem'], 2
        for i, depth in enumerate(self.depths):
            number, dim, heads = self.first + i, dims[i], arch['heads'][i]
            self.add_module(f'patch_embed{number}', patch_embed(inputs, dim, strides[i] // stride))
            if arch['img_size']:
                grid = [(side + 1) // 2 // (strides[i] // 2) for side in arch['img_size']]
                self.register_parameter(f'pos_embed{number}',
                                        nn.Parameter(torch.zeros(1, dim, *grid)))
            blocks = nn.ModuleList()
            for _ in range(depth):
                attn = Attention(dim, heads, self.windows[i], arch['qk_power']) if heads else None
                blocks.append(Block(dim, attn, next(rates)))
            self.add_module(f'stage{number}', blocks)
            if i in self.out_indices and arch['out_norm']:
                self.add_module(f'norm{number}', nn.BatchNorm2d(dim))
            inputs, stride = dim, strides[i]
        self.initialise()
        self.freeze()

    @torch.no_grad()
    def initialise(self) -> None:
        """Kaiming's rule, as the authors; but a branch ends the weaker the more there are."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 4 and name.endswith('weight'):
                nn.init.kaiming_normal_(parameter, mode='fan_out', nonlinearity='relu')
                if name.endswith(('attn.proj.weight', 'mlp.conv3.weight')):
                    parameter.div_((2 * self.num_layers) ** 0.5)
            elif name.startswith('pos_embed') or name.endswith(_TABLE):
                trunc_normal_(parameter, std=0.02)
            elif name.endswith('proj.bias'):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        outputs, count = [], 0
        for i, window in enumerate(self.windows):
            number = self.first + i
            x = self.get_submodule(f'patch_embed{number}')(x)
            if hasattr(self, f'pos_embed{number}'):
                x = x + resample(self.get_parameter(f'pos_embed{number}'), x.shape[2:])
            mask = shift_mask(*x.shape[2:], window, x.device) if window else None
            for block in self.get_submodule(f'stage{number}'):
                x = self.run(block, x, mask if count % 2 else None)
                count += 1
            if i in self.out_indices:
                norm = getattr(self, f'norm{number}', nn.Identity())
                outputs.append(norm(x).contiguous())
        return tuple(outputs)

    def stage_id(self, name: str) -> int:
        match = _STAGE.match(name)
        return int(match[1]) - self.first + 1 if match else 0

    def layer_id(self, name: str) -> int:
        """A patch embedding has the layer of the block before it, so has an output norm."""
        stage = self.stage_id(name)
        if match := _BLOCK.match(name):
            return sum(self.depths[:stage - 1]) + int(match[1]) + 1
        return sum(self.depths[:stage if name.startswith('norm') else max(stage - 1, 0)])

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters()
                if name.startswith('pos_embed') or name.endswith(_TABLE)}

    @staticmethod
    def convert(state: dict[str, Tensor], net: Backbone) -> dict[str, Tensor]:
        """Official names are ours but for a ``bn`` inside every norm, timm's are ours. The
        classifier is dropped with its norm, and by a Swin-Visformer, as the authors do, the
        position embeddings; tables and embeddings of another size are resampled."""
        own = net.state_dict()
        converted = {}
        for name, tensor in state.items():
            name = name.replace('.bn.', '.')
            if name.startswith(('norm.', 'head.')) or name.endswith('relative_position_index'):
                continue
            if name.startswith('pos_embed'):
                if name not in own:
                    continue
                tensor = resample(tensor, own[name].shape[2:])
            elif name.endswith(_TABLE) and name in own:
                tensor = resize_flat_table(tensor, own[name])
            converted[name] = tensor
        return converted

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        """Where full depth is too much for float32, the official network is a shallower one:
        'swin_small_v2-depth1222'. Position embeddings are those of the case's size."""
        arch, _, depths = variant.partition('-depth')
        options = dict(depths=tuple(map(int, depths))) if depths else {}
        if arch.startswith('plain'):
            options['img_size'] = size
        return dict(arch=arch, **options)


_SWIN = dict(windows=(0, 0, 14, 7), qk_power=-0.5, img_size=None, out_norm=True)
_PLAIN = dict(windows=(0, 0, 0), qk_power=-0.25, img_size=(224, 224), out_norm=False)
ARCHS = dict(
    swin_tiny_v2=dict(stem=24, dim=48, depths=(1, 4, 6, 3), heads=(0, 0, 6, 12), **_SWIN),
    swin_small_v2=dict(stem=32, dim=64, depths=(1, 10, 14, 3), heads=(0, 0, 8, 16), **_SWIN),
    swin_medium_v2=dict(stem=32, dim=96, depths=(1, 8, 14, 2), heads=(0, 0, 8, 16), **_SWIN),
    swin_small=dict(stem=32, dim=96, depths=(0, 7, 4, 4), heads=(0, 0, 6, 6), **_SWIN),
    plain_tiny=dict(stem=16, dim=96, depths=(7, 4, 4), heads=(0, 3, 3), **_PLAIN),
    plain_small=dict(stem=32, dim=192, depths=(7, 4, 4), heads=(0, 6, 6), **_PLAIN),
)
register(Visformer, ARCHS)
