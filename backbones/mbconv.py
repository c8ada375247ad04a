"""The convolutional half of MaxViT and CoAtNet: a stem, and MBConv blocks with a norm first.

An MBConv block (arXiv 1801.04381, 1905.11946) widens a map by a 1 x 1 convolution, filters it
by a depthwise 3 x 3 one, gates its channels (squeeze and excitation) and narrows it again.
Sizes round up throughout. Modules bear timm's names. Maps are B x C x H x W; channels-last in
memory is the faster layout.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import DropPath, SEModule
from torch import Tensor, nn

from .errors import UserError, closest

ACTS: dict[str, Callable[[], nn.Module]] = dict(
    gelu=nn.GELU, gelu_tanh=partial(nn.GELU, approximate='tanh'), silu=nn.SiLU, relu=nn.ReLU)
# Partial windows at the border count what they hold.
POOLS: dict[str, Callable[[Tensor], Tensor]] = dict(
    avg=partial(F.avg_pool2d, kernel_size=2, ceil_mode=True),
    max=partial(F.max_pool2d, kernel_size=2, ceil_mode=True),
    max3=partial(F.max_pool2d, kernel_size=3, stride=2, padding=1))
STRIDES = ('pool', 'expand', 'depthwise')


@dataclass(frozen=True)
class Style:
    """In what families of such networks differ; the defaults are google-research/maxvit's.

    Args:
        act: a key of ``ACTS``.
        eps: of the BatchNorms.
        same: pad as TensorFlow's 'same' does: where a stride of 2 meets an even size, only
            below and to the right. False: evenly.
        stem_bias, bias: of the stem's convolutions; of a block's last one and its shortcut's.
        stride: what halves a map, 'pool' (after the first norm, an average), 'expand' (the
            first convolution) or 'depthwise'.
        pool: a key of ``POOLS``; halves the shortcut.
        widen_late: a block is 4 times as wide inside as its input, not as its output.
        pre_act: the first norm is followed by an activation.
        se_early, se_act: gate before the depthwise convolution's norm; activation in the gate.
    """

    act: str = 'gelu_tanh'
    eps: float = 1e-3
    same: bool = True
    stem_bias: bool = True
    bias: bool = True
    stride: str = 'depthwise'
    pool: str = 'avg'
    widen_late: bool = False
    pre_act: bool = False
    se_early: bool = False
    se_act: str = 'silu'

    def __post_init__(self):
        for key, known in dict(act=ACTS, se_act=ACTS, pool=POOLS, stride=STRIDES).items():
            if (value := getattr(self, key)) not in known:
                raise UserError(f'MBConv has no {key} {value!r}{closest(value, known)}')

    @classmethod
    def of(cls, settings: dict) -> Style:
        """The style among the settings of a variant."""
        return cls(**{field.name: settings[field.name] for field in fields(cls)})

    def norm(self, channels: int) -> nn.BatchNorm2d:
        # The authors let statistics move by 0.01 a batch; from scratch that takes too many.
        return nn.BatchNorm2d(channels, self.eps)


class Conv(nn.Conv2d):
    """A convolution, 1 x 1 or 3 x 3, whose sizes are the input's over the stride, rounded up.

    Args:
        same: see ``Style``.
    """

    def __init__(self, inputs: int, outputs: int, side: int, stride: int = 1, same: bool = False,
                 bias: bool = False, groups: int = 1):
        super().__init__(inputs, outputs, side, stride, side // 2, groups=groups, bias=bias)
        self.same = same and stride == 2 and side == 3

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.weight, self.bias)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution with other weights."""
        padding = self.padding
        if self.same and any(side % 2 == 0 for side in x.shape[2:]):
            above, left = (side % 2 for side in x.shape[2:])
            x, padding = F.pad(x, (left, 1, above, 1)), 0
        return F.conv2d(x, weight, bias, self.stride, padding, groups=self.groups)


def conv_norm(conv: Conv, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """``norm(conv(x))``, in one pass over the map where the statistics are fixed."""
    if norm.training:
        return norm(conv(x))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    return conv.convolve(x, conv.weight * scale[:, None, None, None], norm.bias - mean * scale)


class Downsample(nn.Module):
    """Halve a map by pooling; where its channels change, a 1 x 1 convolution follows."""

    def __init__(self, inputs: int, outputs: int, pool: str, bias: bool):
        super().__init__()
        self.pool = POOLS[pool]
        self.expand = (nn.Conv2d(inputs, outputs, 1, bias=bias) if inputs != outputs
                       else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.pool(x))


class MBConv(nn.Module):
    """Norm, 1 x 1, depthwise 3 x 3, gate, 1 x 1, with a skip. B x C x H x W.

    Args:
        stride: 1, or 2: the map is halved.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, style: Style, drop_path: float):
        super().__init__()
        wide, squeeze = (4 * inputs, inputs) if style.widen_late else (4 * outputs, outputs // 4)
        strides = {part: stride if part == style.stride else 1 for part in STRIDES}
        self.shortcut = self.down = nn.Identity()
        if stride == 2:
            self.shortcut = Downsample(inputs, outputs, style.pool, style.bias)
        if strides['pool'] == 2:
            self.down = Downsample(inputs, inputs, 'avg', bias=False)
        self.act = ACTS[style.act]()
        self.pre_norm = style.norm(inputs)
        self.pre_act = ACTS[style.act]() if style.pre_act else nn.Identity()
        self.conv1_1x1 = Conv(inputs, wide, 1, strides['expand'])
        self.norm1 = style.norm(wide)
        self.conv2_kxk = Conv(wide, wide, 3, strides['depthwise'], style.same, groups=wide)
        self.norm2 = style.norm(wide)
        gate = SEModule(wide, rd_channels=squeeze, act_layer=ACTS[style.se_act])
        self.se_early = gate if style.se_early else None
        self.se = None if style.se_early else gate
        self.conv3_1x1 = Conv(wide, outputs, 1, bias=style.bias)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.pre_act(self.pre_norm(x)))
        y = self.act(conv_norm(self.conv1_1x1, self.norm1, y))
        if self.se_early:
            y = self.act(self.norm2(self.se_early(self.conv2_kxk(y))))
        else:
            y = self.se(self.act(conv_norm(self.conv2_kxk, self.norm2, y)))
        return self.shortcut(x) + self.drop_path(self.conv3_1x1(y))


class Stem(nn.Module):
    """Two 3 x 3 convolutions to stride 2; a norm and an activation between."""

    def __init__(self, widths: tuple[int, int], style: Style):
        super().__init__()
        self.conv1 = Conv(3, widths[0], 3, 2, style.same, style.stem_bias)
        self.norm1 = style.norm(widths[0])
        self.act = ACTS[style.act]()
        self.conv2 = Conv(*widths, 3, bias=style.stem_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.act(conv_norm(self.conv1, self.norm1, x)))


@torch.no_grad()
def initialise(net: nn.Module) -> None:
    """Kernels, matrices and position tables normal with deviation 0.02, biases zero, as in
    google-research/maxvit."""
    for name, parameter in net.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith('bias'):
            nn.init.zeros_(parameter)
