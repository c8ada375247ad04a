"""MogaNet (Li et al., ICLR 2024), arXiv 2211.03295: multi-order gated aggregation.

A convolutional network with BatchNorm throughout. A block gates depthwise convolutions of
three orders (5, 13 and 23 pixels wide, the wider ones dilated); its MLP moves every channel
away from what all channels have in common.

Official code: Westlake-AI/MogaNet, one file for all tasks. Same names and numbers. Differs
from it: ``out_indices``, ``frozen_stages`` and ``norm_eval``, which it ignores, take effect;
the contrast in the MLP is folded into the weights of its last layer; on the CPU, maps are
channels-last and dilated convolutions go phase by phase (small 1.1, xtiny 1.6 times as fast).

variant  parameters  GMACs 224   512  800x1280  ImageNet-1K top-1 (published)
xtiny         2.8 M       0.78   4.1      16.0  76.5
tiny          4.9 M       1.08   5.7      22.1  79.0
small        24.8 M       4.93  25.8     100.7  83.4
base         43.2 M       9.86  51.5     201.3  84.3
large        81.8 M      15.82  82.7     322.9  84.7
xlarge      180.0 M      34.40 179.7     702.1  85.1 (87.8 with ImageNet-21K)

Published with small: Mask R-CNN 46.6 box, 42.2 mask AP (1x), 48.5, 43.1 (3x); Cascade
Mask R-CNN 51.7, 45.1 (3x); UperNet 49.2 mIoU.
"""
from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from .base import Backbone
from .errors import UserError
from .registry import register

_START = 1e-5  # of all scales
_PART = re.compile(r'((?:patch_embed|blocks|norm)(\d))\.(?:(\d+)\.)?')
# Two blocks of stage 3 share a layer; the authors number no layer 1.
_LAYERS = dict(patch_embed1=0, blocks1=2, patch_embed2=3, blocks2=3, patch_embed3=4,
               patch_embed4=12, blocks4=12)
_DOUBLE = '_forcefp32'  # how parity cases mark the other gating


class DepthwiseConv(nn.Conv2d):
    """A depthwise convolution that keeps the size. B x C x H x W.

    With dilation d, pixels whose rows and columns are equal modulo d see only one another:
    they form d x d smaller maps and an undilated convolution of each. CPUs have fast kernels
    for that alone.
    """

    def __init__(self, dim: int, side: int, dilation: int = 1):
        super().__init__(dim, dim, side, padding=side // 2 * dilation, dilation=dilation,
                         groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        step = self.dilation[0]
        if step == 1 or not x.is_cpu:
            return super().forward(x)
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % step, 0, -height % step)).permute(0, 2, 3, 1)
        maps = x.unflatten(2, (-1, step)).unflatten(1, (-1, step)).permute(2, 4, 0, 1, 3, 5)
        y = F.conv2d(maps.flatten(0, 2).permute(0, 3, 1, 2), self.weight, self.bias,
                     padding=self.kernel_size[0] // 2, groups=self.groups)
        maps = y.permute(0, 2, 3, 1).unflatten(0, (step, step, -1)).permute(2, 3, 0, 4, 1, 5)
        return maps.flatten(3, 4).flatten(1, 2)[:, :height, :width].permute(0, 3, 1, 2)


class Contrast(nn.Module):
    """Move a map away from what it has in common: x + scale * (x - common)."""

    def __init__(self, dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, dim, 1, 1), _START))

    def forward(self, x: Tensor, common: Tensor) -> Tensor:
        return x * (1 + self.scale) - common * self.scale

    def then(self, conv: nn.Conv2d, x: Tensor, common: Tensor) -> Tensor:
        """A 1 x 1 convolution of the result, which itself is never made.

        Args:
            x: B x C x H x W.
            common: B x 1 x H x W.
        """
        shift = (conv.weight * self.scale).sum(1, keepdim=True)
        return F.conv2d(x, conv.weight * (1 + self.scale), conv.bias) - F.conv2d(common, shift)


class MultiOrder(nn.Module):
    """Depthwise 5 x 5; then, on 3/8 and on 1/2 of the channels, wider ones of dilation 2 and
    3; mixed. B x C x H x W."""

    def __init__(self, dim: int):
        super().__init__()
        self.split = dim // 8, 3 * dim // 8, dim // 2
        self.DW_conv0 = DepthwiseConv(dim, 5)
        self.DW_conv1 = DepthwiseConv(self.split[1], 5, dilation=2)
        self.DW_conv2 = DepthwiseConv(self.split[2], 7, dilation=3)
        self.PW_conv = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        low, middle, high = self.DW_conv0(x).split(self.split, 1)
        return self.PW_conv(torch.cat([low, self.DW_conv1(middle), self.DW_conv2(high)], 1))


class GatedAggregation(nn.Module):
    """What a map has beyond its mean, aggregated over three orders, under a gate.
    B x C x H x W."""

    def __init__(self, dim: int, double_silu: bool):
        super().__init__()
        self.proj_1 = nn.Conv2d(dim, dim, 1)
        self.sigma = Contrast(dim)
        self.gate = nn.Conv2d(dim, dim, 1)
        self.value = MultiOrder(dim)
        self.act = nn.Sequential(nn.SiLU(), nn.SiLU()) if double_silu else nn.SiLU()
        self.proj_2 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.proj_1(x)
        y = F.silu(self.sigma(y, y.mean((2, 3), keepdim=True)))
        return self.proj_2(self.act(self.gate(y)) * self.act(self.value(y)))


class ChannelAggregation(nn.Module):
    """MLP with a depthwise convolution, and a contrast of each channel to one gathered from
    all of them. B x C x H x W."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.dwconv = DepthwiseConv(hidden, 3)
        self.decompose = nn.Conv2d(hidden, 1, 1)
        self.sigma = Contrast(hidden)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.dwconv(self.fc1(x)))
        return self.sigma.then(self.fc2, x, F.gelu(self.decompose(x)))


class Block(nn.Module):
    """Spatial and channel aggregation, each behind a norm, scaled, with a skip. The spatial
    one has a second skip, from behind its norm. B x C x H x W."""

    def __init__(self, dim: int, hidden: int, double_silu: bool, drop_path: float):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(dim)
        self.attn = GatedAggregation(dim, double_silu)
        self.layer_scale_1 = nn.Parameter(torch.full((1, dim, 1, 1), _START))
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = ChannelAggregation(dim, hidden)
        self.layer_scale_2 = nn.Parameter(torch.full((1, dim, 1, 1), _START))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.drop_path(self.layer_scale_1 * (self.attn(y) + y))
        return x + self.drop_path(self.layer_scale_2 * self.mlp(self.norm2(x)))


class Stem(nn.Module):
    """Two 3 x 3 convolutions to stride 4. Sizes round up."""

    def __init__(self, dim: int):
        super().__init__()
        self.projection = nn.Sequential(
            nn.Conv2d(3, dim // 2, 3, 2, padding=1), nn.BatchNorm2d(dim // 2), nn.GELU(),
            nn.Conv2d(dim // 2, dim, 3, 2, padding=1), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x)


class PatchEmbed(nn.Module):
    """Halve the map, rounding up."""

    def __init__(self, inputs: int, dim: int):
        super().__init__()
        self.projection = nn.Conv2d(inputs, dim, 3, 2, padding=1)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.projection(x))


class MogaNet(Backbone):
    """MogaNet as a dense backbone, strides 4, 8, 16, 32. A stage ends with a BatchNorm, whose
    map is both an output and what the next stage gets.

    Args:
        arch: 'xtiny', 'tiny', 'small', 'base', 'large', 'xlarge', or a dict of dims
            (multiples of 8), depths, double_silu.
        drop_path_rate: of the last block; grows linearly from 0.
        double_silu: apply SiLU twice to gate and value. Official checkpoints need False,
            those of openmixup (by the same authors) mostly True: its ``attn_force_fp32``,
            on unless a config says otherwise, is meant to change the precision, but changes
            the function. Which one the released xlarge needs is not known.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
    """

    def __init__(self, arch: str | dict = 'xtiny', out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.1, frozen_stages: int = -1, norm_eval: bool = False,
                 with_cp: bool = False, init_cfg: dict | None = None, **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        if any(dim % 8 for dim in arch['dims']):
            raise UserError(f'MogaNet: dims must be multiples of 8, got {tuple(arch["dims"])}')
        last = self.out_indices[-1]
        self.depths = arch['depths'][:last + 1]
        dims = arch['dims'][:last + 1]
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)

        rates = iter(torch.linspace(0, drop_path_rate, sum(arch['depths']), device='cpu').tolist())
        for stage, (dim, depth) in enumerate(zip(dims, self.depths)):
            embed = PatchEmbed(dims[stage - 1], dim) if stage else Stem(dim)
            hidden = dim * (8 if stage < 2 else 4)
            blocks = [Block(dim, hidden, arch['double_silu'], next(rates)) for _ in range(depth)]
            self.add_module(f'patch_embed{stage + 1}', embed)
            self.add_module(f'blocks{stage + 1}', nn.Sequential(*blocks))
            self.add_module(f'norm{stage + 1}', nn.BatchNorm2d(dim))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                nn.init.zeros_(module.bias)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if x.is_cpu:
            x = x.contiguous(memory_format=torch.channels_last)
        outputs = []
        for i in range(len(self.depths)):
            x = self.get_submodule(f'patch_embed{i + 1}')(x)
            for block in self.get_submodule(f'blocks{i + 1}'):
                x = self.run(block, x)
            x = self.get_submodule(f'norm{i + 1}')(x)
            if i in self.out_indices:
                outputs.append(x.contiguous())
        return tuple(outputs)

    def stage_id(self, name: str) -> int:
        """A stage begins with its patch embedding, the first one with its blocks."""
        part, stage, _ = _PART.match(name).groups()
        return 0 if part == 'patch_embed1' else int(stage)

    @property
    def num_layers(self) -> int:
        """The authors': 12 for every variant."""
        return 12

    def layer_id(self, name: str) -> int:
        """The authors' numbers. The norms that end the stages learn at the full rate."""
        part, _, block = _PART.match(name).groups()
        if part == 'blocks3':
            return min(3 + int(block) // 2, 11)
        return _LAYERS.get(part, self.num_layers + 1)

    def no_weight_decay(self) -> set[str]:
        """All scales, as in every recipe of the authors. Their layer decay also spares
        ``decompose.weight``, for having one output channel; no other recipe does."""
        return {name for name, _ in self.named_parameters() if 'scale' in name}

    @staticmethod
    def convert(state: dict[str, Tensor], net: Backbone) -> dict[str, Tensor]:
        """Official names are ours, but for the classifier."""
        return {name: tensor for name, tensor in state.items() if not name.startswith('head.')}

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        """Cases tap the dense network, in either of its two gatings."""
        return dict(arch=variant.removesuffix(_DOUBLE), double_silu=variant.endswith(_DOUBLE))


ARCHS = dict(
    xtiny=dict(dims=(32, 64, 96, 192), depths=(3, 3, 10, 2), double_silu=False),
    tiny=dict(dims=(32, 64, 128, 256), depths=(3, 3, 12, 2), double_silu=False),
    small=dict(dims=(64, 128, 320, 512), depths=(2, 3, 12, 2), double_silu=False),
    base=dict(dims=(64, 160, 320, 512), depths=(4, 6, 22, 3), double_silu=False),
    large=dict(dims=(64, 160, 320, 640), depths=(4, 6, 44, 4), double_silu=False),
    xlarge=dict(dims=(96, 192, 480, 960), depths=(6, 6, 44, 4), double_silu=False),
)
register(MogaNet, ARCHS)
