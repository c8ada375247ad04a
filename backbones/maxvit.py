"""MaxViT (Tu et al., ECCV 2022), arXiv 2204.01697.

One block for all stages: MBConv, then attention inside windows, then attention over a grid,
whose sets of tokens are spread evenly over the whole map, each attention with an MLP.

Official code: google-research/maxvit (TensorFlow, classification of square images), whose
weights timm ported; this is that network under timm's names, with fused attention. timm's own
``maxvit_*_rw`` and torchvision's ``maxvit_t`` are other networks. Ours: any image size, and a
LayerNorm on every output (``out_norm``). BatchNorm statistics move by 0.1 a batch, not by
0.01, with which they come too late in short runs from scratch. For other sizes than
pretraining's there are two modes:

- 'scale', the default, since the authors' detectors had it (tensorflow/models,
  official/projects/maxvit): window and grid are the image size / 32 and the position tables
  are resampled to that, bilinearly. They knew squares that 32 divides; here images are padded
  to multiples of 32 and windows may be oblong. Attention costs as the square of the area.
- 'pad', ours, meant for multi-scale training: window and grid stay 7 x 7, so that tables stay
  as they were learned and costs grow with the area alone. Maps are padded to multiples of 7
  before every attention; what is padded is no key. At multiples of 224 nothing is padded.

variant  parameters  GMACs 224  512   800x1280 (mode 'pad')  ImageNet-1K top-1 (published), at 512
tiny         30.1 M       5.54  32.9     183.2 (116.3)       83.62, 85.72
small        67.6 M      11.58  66.3     341.4 (243.2)       84.45, 86.19
base        118.1 M      23.90 136.2     692.1 (503.8)       84.95, 86.66
large       209.7 M      43.49 242.4    1160.0 (915.5)       85.17, 86.70
xlarge      471.1 M      97.21 530.5    2392.3 (2045.8)      88.70 at 512 (ImageNet-21K)

Published: Cascade Mask R-CNN at 896 x 896 with tiny 52.1 box, 44.6 mask AP, small 53.1, 45.4,
base 53.4, 45.7 (paper, Table 4; maps of stages 2 to 4, batch 256).
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, Mlp, to_2tuple
from torch import Tensor, nn

from .base import Backbone
from .errors import UserError, closest
from .layers import (
    pad_to_multiple,
    relative_position_bias,
    resize_table,
    window_partition,
    window_reverse,
)
from .mbconv import ACTS, MBConv, Stem, Style, initialise
from .registry import register

HEAD = 32  # channels of a head
MODES = ('scale', 'pad')


class RelativeTable(nn.Module):
    """Attention biases by relative position, resampled for maps of another size.

    Args:
        heads: number of heads.
        size: h, w of the map to which the table belongs.
    """

    def __init__(self, heads: int, size: tuple[int, int]):
        super().__init__()
        # Key minus query, as in the authors' code; other systems count query minus key.
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros(heads, *(2 * side - 1 for side in size)))

    def forward(self, size: tuple[int, int]) -> Tensor:
        """1 x heads x (h * w) x (h * w) for a map of h x w tokens."""
        table = self.relative_position_bias_table.permute(1, 2, 0).flip(0, 1)
        table = resize_table(table, [2 * side - 1 for side in size], 'bilinear')
        return relative_position_bias(table)[None]


class Attention(nn.Module):
    """Multi-head attention with an additive bias. N x tokens x C.

    Args:
        inputs: channels of the tokens.
        channels: of all heads together, a multiple of 32.
        outputs: channels of the result.
        rel_pos: makes the bias; who knows the size of the map calls it.
        by_head: ``qkv`` gives the query, key and value of one head after the other; else all
            queries, all keys, all values.
    """

    def __init__(self, inputs: int, channels: int, outputs: int, rel_pos: nn.Module,
                 by_head: bool):
        super().__init__()
        if channels % HEAD:
            raise UserError(f'attention has heads of {HEAD} channels; {channels} are no multiple')
        heads = channels // HEAD
        self.split, self.order = (((heads, 3, HEAD), (3, 0, 2, 1, 4)) if by_head
                                  else ((3, heads, HEAD), (2, 0, 3, 1, 4)))
        self.qkv = nn.Linear(inputs, 3 * channels)
        self.rel_pos = rel_pos
        self.proj = nn.Linear(channels, outputs)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """N x tokens x C, and 1 or N x heads x tokens x tokens -> N x tokens x outputs."""
        q, k, v = self.qkv(x).unflatten(-1, self.split).permute(self.order)
        out = F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype))
        return self.proj(out.transpose(1, 2).flatten(2))


def grid_partition(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sets of tokens that lie as far apart as a regular grid over the whole map allows.

    Args:
        x: B x H x W x C, H and W multiples of the grid.
        grid: g rows and g' columns.

    Returns:
        (B * H/g * W/g') x (g * g') x C.
    """
    x = x.unflatten(2, (grid[1], -1)).unflatten(1, (grid[0], -1))
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3, 4).flatten(0, 2)


def grid_reverse(t: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Inverse of ``grid_partition``, for a map of ``size`` H, W."""
    x = t.unflatten(1, grid).unflatten(0, (-1, size[0] // grid[0], size[1] // grid[1]))
    return x.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2)


PARTITIONS = dict(block=(window_partition, window_reverse), grid=(grid_partition, grid_reverse))


class PartitionAttention(nn.Module):
    """Attention inside the sets of a partition, and an MLP. B x H x W x C."""

    def __init__(self, dim: int, window: tuple[int, int], partition: str, drop_path: float):
        super().__init__()
        self.partition, self.reverse = PARTITIONS[partition]
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, dim, dim, RelativeTable(dim // HEAD, window), by_head=False)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim, act_layer=ACTS['gelu_tanh'])
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, window: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attend(self.norm1(x), window))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def attend(self, x: Tensor, window: tuple[int, int]) -> Tensor:
        """Attention alone. What is padded here is no key."""
        batch, height, width = x.shape[:3]
        bias = self.attn.rel_pos(window)
        x = pad_to_multiple(x, window)
        size = x.shape[1:3]
        if size != (height, width):
            outside = x.new_full((1, *size, 1), -math.inf)
            outside[:, :height, :width] = 0
            mask = self.partition(outside, window).mT[:, None]
            bias = (bias + mask).repeat(batch, 1, 1, 1)
        x = self.attn(self.partition(x, window), bias)
        return self.reverse(x, window, size)[:, :height, :width]


class Block(nn.Module):
    """MBConv, attention in windows, attention on a grid. B x C x H x W."""

    def __init__(self, inputs: int, outputs: int, stride: int, window: tuple[int, int],
                 drop_path: float):
        super().__init__()
        self.conv = MBConv(inputs, outputs, stride, Style(), drop_path)
        self.attn_block = PartitionAttention(outputs, window, 'block', drop_path)
        self.attn_grid = PartitionAttention(outputs, window, 'grid', drop_path)

    def forward(self, x: Tensor, window: tuple[int, int]) -> Tensor:
        x = self.conv(x).permute(0, 2, 3, 1)
        return self.attn_grid(self.attn_block(x, window), window).permute(0, 3, 1, 2)


class MaxViT(Backbone):
    """MaxViT as a dense backbone, strides 4, 8, 16, 32.

    Args:
        arch: 'maxvit_tiny', 'maxvit_small', 'maxvit_base', 'maxvit_large', 'maxvit_xlarge', or
            a dict of stem and dims (channels), depths, and window (side, or height and width,
            of the window and grid to which position tables belong; in mode 'pad' those used).
        mode: 'scale' or 'pad', see the module's docstring.
        out_norm: LayerNorm on every output; the authors' detectors take the maps as they are.
        drop_path_rate: r; the authors' rule, r * b / N for block b of N counted from 0.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
    """

    added = ('norm',)

    def __init__(self, arch: str | dict = 'maxvit_tiny', out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.2, mode: str = 'scale', out_norm: bool = True,
                 frozen_stages: int = -1, norm_eval: bool = False, with_cp: bool = False,
                 init_cfg: dict | None = None, **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        if mode not in MODES:
            raise UserError(f'MaxViT has no mode {mode!r}{closest(mode, MODES)}')
        last = self.out_indices[-1]
        self.mode = mode
        self.window = to_2tuple(arch['window'])
        self.depths = arch['depths'][:last + 1]
        self.out_channels = tuple(arch['dims'][i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)

        blocks = sum(arch['depths'])
        rates = iter([drop_path_rate * number / blocks for number in range(blocks)])
        self.stem = Stem((arch['stem'],) * 2, Style())
        self.stages = nn.ModuleList()
        inputs = arch['stem']
        for dim, depth in zip(arch['dims'], self.depths):
            blocks = nn.ModuleList()
            for number in range(depth):
                blocks.append(Block(inputs, dim, 1 if number else 2, self.window, next(rates)))
                inputs = dim
            self.stages.append(nn.ModuleDict(dict(blocks=blocks)))
        for i, dim in zip(self.out_indices, self.out_channels):
            self.add_module(f'norm{i}', LayerNorm2d(dim, eps=1e-5) if out_norm else nn.Identity())
        initialise(self)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        height, width = x.shape[2:]
        window = self.window
        if self.mode == 'scale':
            x = F.pad(x, (0, -width % 32, 0, -height % 32))
            window = x.shape[2] // 32, x.shape[3] // 32
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        outputs = []
        for i, stage in enumerate(self.stages):
            for block in stage['blocks']:
                x = self.run(block, x, window)
            if i in self.out_indices:
                stride = 4 * 2 ** i
                y = x[:, :, :-(-height // stride), :-(-width // stride)]
                outputs.append(self.get_submodule(f'norm{i}')(y).contiguous())
        return tuple(outputs)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if '.rel_pos.' in name}

    @staticmethod
    def convert(state: dict[str, Tensor], net: Backbone) -> dict[str, Tensor]:
        """timm's names of the authors' weights are ours. Tables of another window, as after
        finetuning at 384 or 512, are resampled."""
        own = net.state_dict()
        converted = {}
        for name, tensor in state.items():
            if name.startswith('head.'):
                continue
            if '.rel_pos.' in name and name in own:
                tensor = resize_table(tensor.permute(1, 2, 0), own[name].shape[1:], 'bilinear')
                tensor = tensor.permute(2, 0, 1)
            converted[name] = tensor
        return converted

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        """Cases tap raw outputs. Tables belong to the windows of the case's image size, or,
        where the variant ends in '-resized_bias', to those of pretraining."""
        arch = variant.removesuffix('-resized_bias')
        options = dict(arch=arch, out_norm=False)
        if arch == variant:
            options['window'] = tuple(-(-side // 32) for side in size)
        return options


_SMALL = dict(depths=(2, 2, 5, 2), window=7)
_LARGE = dict(depths=(2, 6, 14, 2), window=7)
ARCHS = dict(
    maxvit_tiny=dict(_SMALL, stem=64, dims=(64, 128, 256, 512)),
    maxvit_small=dict(_SMALL, stem=64, dims=(96, 192, 384, 768)),
    maxvit_base=dict(_LARGE, stem=64, dims=(96, 192, 384, 768)),
    maxvit_large=dict(_LARGE, stem=128, dims=(128, 256, 512, 1024)),
    maxvit_xlarge=dict(_LARGE, stem=192, dims=(192, 384, 768, 1536)),
)
register(MaxViT, ARCHS)
