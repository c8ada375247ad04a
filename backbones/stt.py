"""STT-style: our reconstruction of the Super Token Transformer (Farooq et al., 2021), arXiv
2111.13156.

A transformer of one resolution. Each window of patches owns a Super token, which attends with
the patches inside; Super tokens then attend to each other, and so carry what crosses windows.
(Not the super-token sampling of arXiv 2211.11167, which clusters pixels.)

No code was found, and of the paper we could read the abstract alone: the lines above, a class
token learned from Super tokens only, later layers that learn mostly apart from the patches,
and STT-S25 with 49 M parameters. Everything else is ours, fitted to that number: width 384,
25 blocks, patches of 16, windows of 7 x 7, and two kinds of blocks in turn, L (windows with
their Super tokens) and G (Super tokens alone). Two things depart from the abstract, for the
sake of dense maps: the turns, since patches behind which only G blocks stood would never see
the global result; and a depthwise 3 x 3 convolution before each L, which says where a patch
lies and looks across the borders of windows. The classifier is left out; the ``Pyramid`` to
strides 4, 8, 16, 32 is common practice of plain backbones. No weights exist.

variant  parameters  GMACs 224   512  800x1280
tiny            4.7 M       0.75   4.0      15.4  ours, for tests; published nowhere
s25            47.1 M       5.89  31.1     121.4

Without pyramid, and with a classifier of two layers of class attention, s25 has 49.2 M. The
accuracy of the authors' network, which this one has not shown, is in suite/published/stt.yaml.
"""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale, Mlp, trunc_normal_
from torch import Tensor, nn

from .base import Backbone
from .errors import UserError
from .layers import Pyramid, pad_to_multiple, window_partition, window_reverse
from .registry import register


def real_tokens(size: tuple[int, int], window: int, device: torch.device) -> Tensor | None:
    """Which places in the windows of a map are not padding.

    Args:
        size: H, W of the map.
        window: side of a window.

    Returns:
        windows x window**2, True at real tokens; None where nothing is padded.
    """
    if not any(side % window for side in size):
        return None
    whole = torch.ones(1, *size, 1, dtype=torch.bool, device=device)
    return cut(whole, window)[..., 0]


def cut(x: Tensor, window: int) -> Tensor:
    """B x H x W x C -> (B * windows) x window**2 x C, filled up below and to the right."""
    return window_partition(pad_to_multiple(x, (window, window)), (window, window))


def join(t: Tensor, window: int, size: tuple[int, int]) -> Tensor:
    """Inverse of ``cut``: (B * windows) x window**2 x C -> B x H x W x C."""
    height, width = size
    padded = height + -height % window, width + -width % window
    return window_reverse(t, (window, window), padded)[:, :height, :width]


def attention(qkv: Tensor, heads: int, keys: Tensor | None = None) -> Tensor:
    """Multi-head attention within each sequence.

    Args:
        qkv: N x tokens x 3C.
        heads: consecutive slices of the channels.
        keys: N x tokens, False at what nobody attends to; None: all are keys.

    Returns:
        N x tokens x C.
    """
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mask = None if keys is None else keys[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)


class Block(nn.Module):
    """What both kinds of blocks have: attention and MLP, each behind a norm, scaled and with
    a skip.

    Args:
        dim: channels C.
        heads: of the attention.
        layer_scale: what the gains of both branches start at.
        drop_path: rate.
    """

    def __init__(self, dim: int, heads: int, layer_scale: float, drop_path: float):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.ls1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.ls2 = LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def mix(self, t: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """The block on tokens B x N x C, its attention being ``attend``: queries, keys and values
        B x N x 3C -> B x N x C."""
        t = t + self.drop_path(self.ls1(self.proj(attend(self.qkv(self.norm1(t))))))
        return t + self.drop_path(self.ls2(self.mlp(self.norm2(t))))


class LocalBlock(Block):
    """L: patches see their neighbours, then the patches of their window and its Super token.

    Args:
        dim, heads, layer_scale, drop_path: see ``Block``.
        window: side of a window.
    """

    def __init__(self, dim: int, heads: int, layer_scale: float, drop_path: float, window: int):
        super().__init__(dim, heads, layer_scale, drop_path)
        self.window = window
        self.cpe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, supers: Tensor, x: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """Super tokens B x windows x C, patches B x H x W x C, and the keys of ``attention``
        -> both tokens, updated."""
        size = x.shape[1:3]
        counts = supers.shape[1], math.prod(size)
        x = x + self.cpe(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

        def attend(qkv: Tensor) -> Tensor:
            owners, patches = qkv.split(counts, 1)
            windows = cut(patches.unflatten(1, size), self.window)
            windows = torch.cat([owners.flatten(0, 1)[:, None], windows], 1)
            windows = attention(windows, self.heads, keys)
            owners = windows[:, 0].unflatten(0, (len(x), -1))
            patches = join(windows[:, 1:], self.window, size)
            return torch.cat([owners, patches.flatten(1, 2)], 1)

        # One sequence for all that treats tokens alike: only attention pays for padding.
        t = self.mix(torch.cat([supers, x.flatten(1, 2)], 1), attend)
        supers, x = t.split(counts, 1)
        return supers, x.unflatten(1, size)


class GlobalBlock(Block):
    """G: Super tokens see each other; patches stay as they are."""

    def forward(self, supers: Tensor, x: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.mix(supers, lambda qkv: attention(qkv, self.heads)), x


class Stem(nn.Module):
    """Four 3 x 3 convolutions to stride 16; the last one bare. Sizes round up.
    B x 3 x H x W -> B x H/16 x W/16 x C."""

    def __init__(self, dim: int):
        super().__init__()
        layers: list[nn.Module] = []
        dims = 3, dim // 8, dim // 4, dim // 2, dim
        for inputs, outputs in zip(dims, dims[1:]):
            layers += (nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False),
                       nn.BatchNorm2d(outputs), nn.GELU())
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)


class STT(Backbone):
    """STT-style reconstruction as a dense backbone, strides 4, 8, 16, 32 by a ``Pyramid``.

    A stage ends with a map that becomes one level, through a LayerNorm.

    Args:
        arch: 'tiny', 's25', or a dict of dim, depths, heads, window (side, in patches of 16
            pixels), order (kinds of blocks, from the first one: L local, G global; repeated
            until there are enough) and layer_scale (what all branches' gains start at). G
            blocks after the last L change no map, and are not built.
        drop_path_rate: of every block.
        last_only: make all levels of the last map, as ViTDet (arXiv 2203.16527) does.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``. Of the
            pyramid only the BatchNorm is frozen, with the stage whose map it sees.
    """

    added = ('norm', 'pyramid.')
    reconstruction = True

    def __init__(self, arch: str | dict = 'tiny', out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.1, last_only: bool = False, frozen_stages: int = -1,
                 norm_eval: bool = False, with_cp: bool = False, init_cfg: dict | None = None,
                 **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        if not re.fullmatch('L[LG]*', str(arch['order'])):
            raise UserError('STT: order must be a string of L and G that starts with L, got '
                            f'{arch["order"]!r}')
        dim, self.window = arch['dim'], arch['window']
        deepest = len(arch['depths']) - 1
        self.taps = [deepest if last_only else i for i in self.out_indices]
        self.out_channels = (dim,) * len(self.out_indices)
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)

        self.stem = Stem(dim)
        self.super_token = nn.Parameter(torch.zeros(1, 1, dim))
        make = dict(L=partial(LocalBlock, window=self.window), G=GlobalBlock)
        options = dict(dim=dim, heads=arch['heads'], layer_scale=arch['layer_scale'],
                       drop_path=drop_path_rate)
        depths = arch['depths'][:self.taps[-1] + 1]
        kinds = iter(''.join(islice(cycle(arch['order']), sum(depths))).rstrip('G'))
        self.stages = nn.ModuleList()
        for depth in depths:
            blocks = nn.ModuleList(make[kind](**options) for kind in islice(kinds, depth))
            self.stages.append(nn.ModuleDict(dict(blocks=blocks)))
        self.depths = tuple(len(stage['blocks']) for stage in self.stages)
        for i in self.out_indices:
            self.add_module(f'norm{i}', nn.LayerNorm(dim, eps=1e-6))
        self.pyramid = Pyramid(dim, 16, self.out_indices, norm=nn.BatchNorm2d)

        trunc_normal_(self.super_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        height, width = x.shape[2:]
        x = self.stem(x)
        real = real_tokens(x.shape[1:3], self.window, x.device)
        supers = self.super_token + self.means(x, real)
        keys = None if real is None else F.pad(real, (1, 0), value=True).repeat(len(x), 1)
        maps = []
        for i, stage in enumerate(self.stages):
            for block in stage['blocks']:
                supers, x = self.run(block, supers, x, keys)
            maps += [self.get_submodule(f'norm{level}')(x).permute(0, 3, 1, 2)
                     for level, tap in zip(self.out_indices, self.taps) if tap == i]
        # Twice or four times a rounded-up size may be too large.
        return tuple(y[..., :-(-height // stride), :-(-width // stride)].contiguous()
                     for y, stride in zip(self.pyramid(maps), self.out_strides))

    def means(self, x: Tensor, real: Tensor | None) -> Tensor:
        """Of each window's real patches: B x H x W x C -> B x windows x C."""
        count = self.window ** 2 if real is None else real.sum(1, keepdim=True)
        return cut(x, self.window).sum(1).unflatten(0, (len(x), -1)) / count

    def stage_id(self, name: str) -> int:
        """The norm between two transposed convolutions, which the level of stride 4 alone
        has, goes with its stage: a frozen stage's map must not follow the batch."""
        if name.startswith('pyramid.scales.0.1.'):
            return self.taps[0] + 1
        return len(self.depths) + 1 if name.startswith('pyramid.') else super().stage_id(name)

    def layer_id(self, name: str) -> int:
        return self.num_layers + 1 if name.startswith('pyramid.') else super().layer_id(name)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters()
                if name == 'super_token' or name.endswith('.gamma')}


ARCHS = dict(
    tiny=dict(dim=192, depths=(3, 2, 2, 2), heads=4, window=7, order='LG', layer_scale=1e-4),
    s25=dict(dim=384, depths=(7, 6, 6, 6), heads=8, window=7, order='LG', layer_scale=1e-4),
)
register(STT, ARCHS)
