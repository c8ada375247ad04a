"""UniNet, the searched one (Liu et al., ECCV 2022), arXiv 2207.05420.

Four stages of inverted residuals with squeeze and excitation, at strides 2, 4, 8, 16, then
two of global attention, at 16 and 32; expansions and repeats come from a search. Down-sampling
modules join the stages; those before attention are cross-attention themselves, of a convolved
map to the map before it, one of them without down-sampling. The only position information is
a depthwise convolution in every attention block. Sizes round up.

Official code: Sense-X/UniNet, a classifier at fixed square sizes; nothing was published for
dense tasks. Same names and numbers, maps of any shape, fused attention. Ours: the outputs are
the ends of the stages at stride 4 and 8, of the *second* one at 16, and of the last, each
behind a LayerNorm (``out_norm``); layer scales start at 1, not at 1e-6, so that blocks count
from the first step of a run from scratch (checkpoints overwrite them). Another network of this
name and title, arXiv 2110.04035, has other blocks: its figures are not these.

variant  parameters  GMACs 224   512  800x1280  ImageNet-1K top-1 (published), at
b0            9.8 M       1.08   7.0      47.3  (the same network as b1)       160
b1            9.8 M       1.08   7.0      47.3  81.0                           224
b2           14.6 M       1.58  10.2      67.2  82.5 (figure)                  256
b3           22.4 M       2.43  15.4      98.4  83.5 (figure)                  288
b4           42.1 M       4.34  26.7     161.7  84.4 (figure)                  320
b5           71.0 M       6.38  38.6     225.5  84.9                           384
b6          114.8 M      11.63  67.9     365.7  85.6 (figure)                  448

With ImageNet-21K: b5 87.0 (figure), b6 87.4. Sources: README (b1) and figure of
Sense-X/UniNet, abstract (84.9, 87.4).
"""
from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, Mlp, SEModule, make_divisible, trunc_normal_
from torch import Tensor, nn

from .base import Backbone
from .dilateformer import GlobalAttention
from .errors import UserError
from .registry import register

STEM = 32  # channels behind it, in every variant
HEAD = 32  # channels of an attention head

_BLOCK = re.compile(r'blocks\.(\d+)\.')


def depthwise(dim: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, 3, stride, padding=1, groups=dim, bias=bias)


def shortcut(inputs: int, outputs: int, *pool: nn.Module) -> nn.Sequential:
    return nn.Sequential(*pool, nn.Conv2d(inputs, outputs, 1))


class ConvBlock(nn.Module):
    """Inverted residual: norm, widen, depthwise convolution, gate, narrow, with a skip.
    B x C x H x W.

    Args:
        inputs, outputs: channels; where they differ, the skip is pooled and convolved.
        expansion: channels inside over those of the input; 1: nothing is widened.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, drop_path: float):
        super().__init__()
        hidden = inputs * expansion
        self.residual = (nn.Identity() if inputs == outputs
                         else shortcut(inputs, outputs, nn.MaxPool2d(3, 1, 1)))
        self.b1 = nn.Identity() if expansion == 1 else nn.Sequential(
            nn.BatchNorm2d(inputs), nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden), nn.GELU())
        gate = SEModule(hidden, rd_channels=make_divisible(hidden // 4, 8),
                        gate_layer='hard_sigmoid')
        self.b2 = nn.Sequential(depthwise(hidden, bias=False), nn.BatchNorm2d(hidden), nn.GELU(),
                                gate, nn.Conv2d(hidden, outputs, 1), nn.BatchNorm2d(outputs))
        nn.init.zeros_(self.b2[-1].weight)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + self.drop_path(self.b2(self.b1(x)))


class AttentionBlock(nn.Module):
    """Position encoding, attention, MLP, each with a skip. B x C x H x W."""

    def __init__(self, dim: int, expansion: int, layer_scale: float, drop_path: float):
        super().__init__()
        self.pos_embed = depthwise(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = GlobalAttention(dim, dim // HEAD)
        self.gamma_1 = nn.Parameter(torch.full((dim,), float(layer_scale)))
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, dim * expansion)
        self.gamma_2 = nn.Parameter(torch.full((dim,), float(layer_scale)))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = (x + self.pos_embed(x)).permute(0, 2, 3, 1)
        x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(x)))
        x = x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)))
        return x.permute(0, 3, 1, 2)


class LocalDownsample(nn.Module):
    """L-DSM: halve the map by a depthwise convolution and, beside it, by pooling."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.downsample = nn.Sequential(depthwise(inputs, 2), nn.BatchNorm2d(inputs),
                                        nn.Conv2d(inputs, outputs, 1))
        self.residual = shortcut(inputs, outputs, nn.MaxPool2d(3, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(x) + self.residual(x)


class GlobalDownsample(nn.Module):
    """LG-DSM: every position of a convolved map attends to the whole map before it.

    Args:
        stride: 2 halves the map, 1 keeps its size.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.q = nn.Sequential(depthwise(inputs, stride), nn.BatchNorm2d(inputs),
                               nn.Conv2d(inputs, outputs, 1))
        self.q_norm = nn.LayerNorm(outputs)
        self.kv_norm = nn.LayerNorm(inputs)
        self.kv = nn.Linear(inputs, 2 * outputs)
        self.proj = nn.Linear(outputs, outputs)
        self.residual = shortcut(inputs, outputs, *[nn.MaxPool2d(3, 2, 1)] * (stride - 1))

    def forward(self, x: Tensor) -> Tensor:
        q = self.q_norm(self.q(x).permute(0, 2, 3, 1))
        k, v = self.kv(self.kv_norm(x.permute(0, 2, 3, 1))).chunk(2, -1)
        heads = [t.flatten(1, 2).unflatten(-1, (-1, HEAD)).transpose(1, 2) for t in (q, k, v)]
        out = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(q.shape)
        return self.proj(out).permute(0, 3, 1, 2) + self.residual(x)


class Stage(NamedTuple):
    """What the search found for a stage; depths and widths are a variant's."""

    level: int  # the output it belongs to
    expansion: int  # channels inside a block over those of its input
    attention: bool
    downsample: Callable[[int, int], nn.Module] | None  # what stands in front


STAGES = (
    Stage(0, 1, False, None),
    Stage(0, 4, False, LocalDownsample),
    Stage(1, 6, False, LocalDownsample),
    Stage(2, 3, False, LocalDownsample),
    Stage(2, 2, True, partial(GlobalDownsample, stride=1)),
    Stage(3, 5, True, partial(GlobalDownsample, stride=2)),
)


class UniNet(Backbone):
    """UniNet as a dense backbone, strides 4, 8, 16, 32.

    Args:
        arch: 'b0' to 'b6', or a dict of dims and depths of the six stages; the last two
            dims are multiples of 32.
        drop_path_rate: of the last block; grows linearly from 0.
        layer_scale: what the layer scales of attention blocks start at.
        out_norm: LayerNorm on every output; the official network has none.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
    """

    added = ('norm',)

    def __init__(self, arch: str | dict = 'b0', out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.1, layer_scale: float = 1., out_norm: bool = True,
                 frozen_stages: int = -1, norm_eval: bool = False, with_cp: bool = False,
                 init_cfg: dict | None = None, **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        dims, depths = arch['dims'], arch['depths']
        last = self.out_indices[-1]
        if last > STAGES[-1].level:
            raise UserError(f'UniNet has four outputs, out_indices {self.out_indices} ask for more')
        if len(dims) != len(STAGES) or len(depths) != len(STAGES) or any(
                dim % HEAD for dim, stage in zip(dims, STAGES) if stage.attention):
            raise UserError('UniNet: dims and depths must be those of six stages, and the last two '
                            f'dims multiples of {HEAD}; got {tuple(dims)}, {tuple(depths)}')
        by_level = {stage.level: dim for stage, dim in zip(STAGES, dims)}  # its last stage's
        self.out_channels = tuple(by_level[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)
        self.depths = tuple(sum(depth for stage, depth in zip(STAGES, depths) if stage.level == i)
                            for i in range(last + 1))

        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device='cpu').tolist())
        self.stem = nn.Sequential(nn.Conv2d(3, STEM, 3, 2, padding=1, bias=False),
                                  nn.BatchNorm2d(STEM), nn.GELU())
        self.blocks = nn.ModuleList()
        self.ends = []  # how many of these there are up to the end of each level
        inputs = STEM
        for stage, dim, depth in zip(STAGES, dims, depths):
            if stage.level > last:
                break
            if stage.downsample:
                self.blocks.append(stage.downsample(inputs, dim))
                inputs = dim
            for _ in range(depth):
                self.blocks.append(
                    AttentionBlock(dim, stage.expansion, layer_scale, next(rates))
                    if stage.attention else ConvBlock(inputs, dim, stage.expansion, next(rates)))
                inputs = dim
            self.ends[stage.level:] = [len(self.blocks)]
        if out_norm:
            for i, dim in zip(self.out_indices, self.out_channels):
                self.add_module(f'norm{i}', LayerNorm2d(dim))

        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        outputs = []
        for i, (start, end) in enumerate(pairwise((0, *self.ends))):
            for block in islice(self.blocks, start, end):
                x = self.run(block, x)
            if i in self.out_indices:
                outputs.append(getattr(self, f'norm{i}', nn.Identity())(x).contiguous())
        return tuple(outputs)

    def stage_id(self, name: str) -> int:
        """A module between two stages begins the later one; a stage ends with an output."""
        if match := _BLOCK.match(name):
            return bisect(self.ends, int(match[1])) + 1
        return 0 if name.startswith('stem.') else len(self.depths) + 1

    def layer_id(self, name: str) -> int:
        """A module between two stages counts with the block behind it."""
        if match := _BLOCK.match(name):
            before = islice(self.blocks, int(match[1]))
            return sum(isinstance(block, ConvBlock | AttentionBlock) for block in before) + 1
        return super().layer_id(name)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters()
                if name.endswith(('.gamma_1', '.gamma_2'))}

    @staticmethod
    def convert(state: dict[str, Tensor], net: Backbone) -> dict[str, Tensor]:
        """Official names are ours, but for the classifier."""
        return {name: tensor for name, tensor in state.items()
                if not name.startswith(('head.', 'classifier.'))}

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        """The official cases tap raw stage outputs."""
        return dict(arch=variant, out_norm=False)


ARCHS = dict(
    b0=dict(dims=(24, 48, 80, 128, 128, 256), depths=(1, 2, 4, 4, 4, 8)),
    b1=dict(dims=(24, 48, 80, 128, 128, 256), depths=(1, 2, 4, 4, 4, 8)),
    b2=dict(dims=(24, 48, 80, 128, 128, 256), depths=(2, 3, 6, 6, 6, 12)),
    b3=dict(dims=(24, 56, 96, 160, 160, 288), depths=(2, 3, 7, 7, 7, 14)),
    b4=dict(dims=(32, 64, 112, 192, 192, 352), depths=(2, 4, 9, 9, 9, 18)),
    b5=dict(dims=(32, 64, 112, 224, 224, 448), depths=(3, 5, 10, 10, 10, 20)),
    b6=dict(dims=(48, 96, 160, 256, 256, 512), depths=(4, 6, 12, 12, 12, 24)),
)
register(UniNet, ARCHS)
