"""SPACH-MS (Zhao et al., 2021), arXiv 2108.13002: "A Battle of Network Structures".

One plain frame for convolution, attention and MLP, so that they can be compared. A block is
a depthwise 3 x 3 convolution, a mixing of all positions beside it, and an MLP over channels.
The mixing is global attention ('trans'), an MLP across positions ('mlp'), or none ('conv');
hybrids have their convolutional blocks first in a stage, then those with attention.

Official code: microsoft/SPACH (classification of square images only). Ours: maps of any
shape, a LayerNorm on every output (``out_norm``), fused attention.

The norm between stages is over channels *and positions* (GroupNorm of one group): zero
padding and the shape of a crop change its statistics. An image padded to the size of its
batch hence does not get quite the features that it gets alone; official weights want it so.

MLP variants take images of one size, ``img_size``. Weights learned at 224 x 224 are
resampled to a fixed crop, for sliding-window segmentation: an experiment of ours. They
cannot be detectors.

variant           parameters  GMACs 224  512   800x1280  ImageNet-1K top-1 (published)
ms_conv_xxs            4.6 M       0.71   3.7      14.5  73.1
ms_trans_xxs           2.1 M       0.53   7.6      97.5  65.4
ms_mlp_xxs             6.1 M       0.93   4.9*     19.0* 74.5
ms_conv_xs            16.5 M       2.75  14.4      56.2  not found
ms_trans_xs           14.0 M       3.08  35.4     408.6  not found
ms_mlp_xs             19.5 M       3.41  17.8*     69.6* not found
ms_conv_s             42.6 M       7.14  37.3     145.7  81.6
ms_trans_s            38.8 M       7.53  68.2     672.3  82.9
ms_mlp_s              45.5 M       8.01  41.9*    163.5* 82.1
ms_hybrid_xs          27.2 M       4.44  29.9     210.5  82.4 (paper)
ms_hybrid_s           62.0 M      11.05  80.5     634.5  83.7
ms_hybrid_s_plus      62.1 M      12.18  86.4     657.5  83.9
* with that img_size, and so more parameters: 12.2, 31.9, 57.9 M at 512 x 512.

Top-1 from the official README unless noted. Detection, segmentation: nothing published.
"""
from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from timm.layers import DropPath, Mlp, to_2tuple
from torch import Tensor, nn

from .base import Backbone
from .dilateformer import GlobalAttention
from .errors import UserError, closest
from .layers import resize_table
from .registry import register

_LAYER = re.compile(r'layer(\d)\.(?:(\d+)\.)?')
_RENAMED = {'.cpe_net.net.1.': '.cpe.', '.0.net.1.0.': '.0.conv.', '.0.net.1.1.': '.0.norm.'}
_OFFICIAL = 224  # side of the images of the published networks


class PositionMlp(Mlp):
    """An MLP from all positions of a map to all positions, shared by its channels.
    B x H x W x C.

    Args:
        grid: H and W.
        official: both of them in the official network. The MLP is half as wide as there are
            positions there, also on another map: that half has no grid for resampling.
    """

    def __init__(self, grid: tuple[int, int], official: int):
        super().__init__(math.prod(grid), official ** 2 // 2)
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1, 2).mT).mT.unflatten(1, self.grid)

    def fit(self, tensor: Tensor, axis: int, summed: bool) -> Tensor:
        """Resample a parameter that was learned on a square map, if ours has another size.

        Args:
            axis: that of the positions.
            summed: over positions, as inputs are: the more there are, the less each weighs.
        """
        table = tensor.movedim(axis, 0)
        old, new = len(table), math.prod(self.grid)
        side = math.isqrt(old)
        if old == new or side ** 2 != old:
            return tensor
        resized = resize_table(table.reshape(side, side, -1), self.grid)
        resized = resized.reshape(new, *table.shape[1:]).movedim(0, axis)
        return resized * (old / new) if summed else resized


class Block(nn.Module):
    """A depthwise convolution and an MLP, each with a skip. B x H x W x C."""

    def __init__(self, dim: int, mlp_ratio: int, drop_path: float):
        super().__init__()
        self.cpe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.channel_func = Mlp(dim, mlp_ratio * dim)
        self.drop_path = DropPath(drop_path)

    def mix(self, x: Tensor) -> Tensor:
        """What a position takes from others; never dropped here."""
        return self.cpe(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(x)
        return x + self.drop_path(self.channel_func(self.norm2(x)))


class MixingBlock(Block):
    """A block in which all positions mix beside the convolution, not after it."""

    def __init__(self, dim: int, mlp_ratio: int, drop_path: float, spatial_func: nn.Module):
        super().__init__(dim, mlp_ratio, drop_path)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.spatial_func = spatial_func
        self.gamma_1 = nn.Parameter(torch.full((1, 1, dim), 1e-4))

    def mix(self, x: Tensor) -> Tensor:
        return super().mix(x) + self.drop_path(self.gamma_1 * self.spatial_func(self.norm1(x)))


class Stem(nn.Module):
    """Image to a map: B x 3 x H x W -> B x H/4 x W/4 x C, rounded down.

    'conv1' is one convolution of 4 x 4 patches; 'conv4' is four, the first of which rounds up.
    """

    def __init__(self, dim: int, kind: str):
        super().__init__()
        if kind not in ('conv1', 'conv4'):
            raise UserError(f'SPACH has no stem {kind!r}{closest(kind, ("conv1", "conv4"))}')

        def conv(inputs: int, kernel: int, stride: int) -> tuple[nn.Module, ...]:
            return (nn.Conv2d(inputs, 64, kernel, stride, kernel // 2, bias=False),
                    nn.BatchNorm2d(64), nn.ReLU(inplace=True))

        self.proj = nn.Conv2d(3, dim, 4, 4) if kind == 'conv1' else nn.Sequential(
            *conv(3, 7, 2), *conv(64, 3, 1), *conv(64, 3, 1), nn.Conv2d(64, dim, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


class Downsample(nn.Module):
    """Halve the map (rounding down), double the channels; one norm over all of an image."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, 2 * dim, 2, 2, bias=False)
        self.norm = nn.GroupNorm(1, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


class SPACH(Backbone):
    """SPACH-MS as a dense backbone, strides 4, 8, 16, 32.

    Args:
        arch: a key of ``ARCHS``, or a dict of depths, dim, mlp_ratio, stem ('conv1' or
            'conv4'), mixing ('attn', 'mlp' or None), mixed (how many blocks of a stage, the
            last ones, mix all positions), heads (the same in all stages), img_size.
        out_norm: LayerNorm on every output, ours: the residual stream grows from block to
            block. The last one takes the weights of the classifier's.
        drop_path_rate: of the last block; grows linearly from 0. Convolutions are not dropped.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
        overrides: ``img_size=512`` or ``(512, 640)``, multiples of 32, for an MLP variant.

    Attributes:
        size: the only H x W that the network takes, or None.
        size_rule: how sizes of maps round: 'floor', or 'either' where the first of the four
            convolutions of a stem rounds up.

    Raises:
        UserError: an image size that cannot be; at a forward pass, one that is not ``size``.
    """

    added = ('out_norm',)

    def __init__(self, arch: str | dict = 'ms_trans_xxs',
                 out_indices: Sequence[int] = (0, 1, 2, 3), drop_path_rate: float = 0.1,
                 out_norm: bool = True, frozen_stages: int = -1, norm_eval: bool = False,
                 with_cp: bool = False, init_cfg: dict | None = None, **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        last = self.out_indices[-1]
        self.depths = arch['depths'][:last + 1]
        dims = [arch['dim'] * 2 ** stage for stage in range(last + 1)]
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)
        img_size = _image_size(arch)
        self.size = img_size if any(arch['mixed'][:last + 1]) else None
        self.size_rule = 'floor' if arch['stem'] == 'conv1' else 'either'

        rates = iter(torch.linspace(0, drop_path_rate, sum(arch['depths']), device='cpu').tolist())
        self.stem = Stem(arch['dim'], arch['stem'])
        self.norm1 = nn.LayerNorm(arch['dim'], eps=1e-6)
        for stage, (dim, depth, mixed) in enumerate(zip(dims, self.depths, arch['mixed'])):
            modules: list[nn.Module] = [Downsample(dim // 2)] if stage else []
            for number in range(depth):
                block = dim, arch['mlp_ratio'], next(rates)
                modules.append(Block(*block) if number < depth - mixed else
                               MixingBlock(*block, self._mixing(arch, stage)))
            self.add_module(f'layer{stage + 1}', nn.Sequential(*modules))
        for i, dim in zip(self.out_indices, self.out_channels):
            self.add_module(f'out_norm{i}',
                            nn.LayerNorm(dim, eps=1e-6) if out_norm else nn.Identity())

        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.freeze()

    def _mixing(self, arch: dict, stage: int) -> nn.Module:
        stride = 4 * 2 ** stage
        if arch['mixing'] == 'mlp':
            return PositionMlp(tuple(side // stride for side in self.size), _OFFICIAL // stride)
        if arch['mixing'] == 'attn':
            return GlobalAttention(arch['dim'] * 2 ** stage, arch['heads'])
        raise UserError(f'SPACH has no mixing {arch["mixing"]!r}'
                        f'{closest(arch["mixing"], ("attn", "mlp"))}')

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        height, width = x.shape[-2:]
        if self.size not in (None, (height, width)):
            raise UserError(f'SPACH with MLP mixing takes images of {self.size[0]} x '
                            f'{self.size[1]} only, got {height} x {width}; crop or pad to that, '
                            'pass img_size=(H, W), or choose a conv, trans or hybrid arch')
        x = self.norm1(self.stem(x))
        outputs = []
        for i in range(len(self.depths)):
            for module in self.get_submodule(f'layer{i + 1}'):
                x = self.run(module, x)
            if i in self.out_indices:
                norm = self.get_submodule(f'out_norm{i}')
                outputs.append(norm(x).permute(0, 3, 1, 2).contiguous())
        return tuple(outputs)

    def stage_id(self, name: str) -> int:
        if match := _LAYER.match(name):
            return int(match[1])
        return len(self.depths) + 1 if name.startswith('out_norm') else 0

    def layer_id(self, name: str) -> int:
        stage, match = self.stage_id(name), _LAYER.match(name)
        if not match:
            return 0 if stage == 0 else self.num_layers + 1
        # Element 0 of later stages makes the map smaller; it counts with the block after it.
        number = int(match[2]) + (stage == 1)
        return sum(self.depths[:stage - 1]) + max(number, 1)

    @staticmethod
    def convert(state: dict[str, Tensor], net: SPACH) -> dict[str, Tensor]:
        """Official names with less nesting. The classifier's norm is our last output's; what
        MLPs learned for square images is resampled to the size of ``net``."""
        converted = {}
        for name, tensor in state.items():
            for official, ours in _RENAMED.items():
                name = name.replace(official, ours)
            if name.startswith('norm2.'):
                name = f'out_norm3.{name.removeprefix("norm2.")}'
            if not name.startswith('head.'):
                converted[name] = tensor
        for name, module in net.named_modules():
            if isinstance(module, PositionMlp):
                for leaf, axis in (('fc1.weight', 1), ('fc2.weight', 0), ('fc2.bias', 0)):
                    if (key := f'{name}.{leaf}') in converted:
                        converted[key] = module.fit(converted[key], axis, leaf == 'fc1.weight')
        return converted

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        """The official cases tap raw stage outputs."""
        return dict(arch=variant, out_norm=False)


def _image_size(arch: dict) -> tuple[int, int] | None:
    """The size to which MLPs across positions tie a network."""
    size = arch['img_size']
    if arch['mixing'] != 'mlp':
        if size is not None:
            raise UserError('SPACH has an img_size with MLP mixing only; this arch takes images '
                            'of any size, leave it None')
        return None
    pair = to_2tuple(size)
    if size is None or len(pair) != 2 or any(side < 32 or side % 32 for side in pair):
        raise UserError(f'SPACH with MLP mixing needs an img_size (H, W), multiples of 32, got '
                        f'{size}')
    return tuple(pair)


_XXS = dict(depths=(2, 2, 6, 2), mlp_ratio=2, stem='conv1')
_XS = dict(depths=(3, 4, 12, 3), mlp_ratio=2, stem='conv1')
_S = dict(depths=(3, 4, 12, 3), mlp_ratio=3, stem='conv1')
_CONV = dict(mixing=None, mixed=(0, 0, 0, 0), heads=None, img_size=None)
_TRANS = dict(mixing='attn', img_size=None)
_MLP = dict(mixing='mlp', heads=None, img_size=_OFFICIAL)
ARCHS = dict(
    ms_conv_xxs=dict(_XXS, **_CONV, dim=64),
    ms_trans_xxs=dict(_XXS, **_TRANS, mixed=(0, 2, 6, 2), dim=32, heads=1),
    ms_mlp_xxs=dict(_XXS, **_MLP, mixed=(0, 2, 6, 2), dim=64),
    ms_conv_xs=dict(_XS, **_CONV, dim=96),
    ms_trans_xs=dict(_XS, **_TRANS, mixed=(0, 4, 12, 3), dim=64, heads=2),
    ms_mlp_xs=dict(_XS, **_MLP, mixed=(0, 4, 12, 3), dim=96),
    ms_conv_s=dict(_S, **_CONV, dim=128),
    ms_trans_s=dict(_S, **_TRANS, mixed=(0, 4, 12, 3), dim=96, heads=3),
    ms_mlp_s=dict(_S, **_MLP, mixed=(0, 4, 12, 3), dim=128),
    ms_hybrid_xs=dict(_XS, **_TRANS, mixed=(0, 0, 10, 2), dim=96, heads=3),
    ms_hybrid_s=dict(_S, **_TRANS, mixed=(0, 2, 10, 2), dim=128, heads=4),
    ms_hybrid_s_plus=dict(_S, **_TRANS, mixed=(0, 2, 10, 2), dim=128, heads=4, stem='conv4'),
)
register(SPACH, ARCHS)
