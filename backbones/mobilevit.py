"""MobileViT (Mehta and Rastegari, ICLR 2022), arXiv 2110.02178.

Inverted residuals, and from stride 8 on one MobileViT block per stage: a convolution, then a
small transformer in which every pixel attends to those at the same place in their 2 x 2
patches, then a convolution of both its input and its output. No position encoding.

Official code: apple/ml-cvnets; this is timm's port, same names and numbers. It takes any size
by itself: maps of odd size are resized to even ones before a transformer, and back. Pretrained
at 256, on pixels in [0, 1] without mean and standard deviation.

variant  parameters  GMACs 224   512  800x1280  ImageNet-1K top-1 (published, at 256)
xxs           1.0 M       0.30   2.6      24.2  69.0
xs            1.9 M       0.77   5.5      42.9  74.8
s             4.9 M       1.52  10.1      71.9  78.4

Published dense results with the heads of our protocols: nothing found.
"""
from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, trunc_normal_
from torch import Tensor, nn

from .base import Backbone
from .deit import Block
from .errors import UserError
from .registry import register

HEADS = 4
STEM = 16  # channels
LAST = 4  # number of the map behind the final convolution

_STAGE = re.compile(r'stages\.(\d)\.')
_RESIDUAL = re.compile(r'stages\.1\.(\d)\.')
_LAYER = re.compile(r'stages\.\d\.1\.transformer\.(\d)\.')
_ENDING = re.compile(r'stages\.\d\.1\.(norm|conv_proj|conv_fusion)\.')


def to_places(x: Tensor) -> Tensor:
    """Pixels by their place in 2 x 2 patches: B x H x W x C, H and W even ->
    (B * 4) x (H/2 * W/2) x C."""
    x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3, 4).flatten(0, 2)


def from_places(t: Tensor, size: tuple[int, int]) -> Tensor:
    """Inverse of ``to_places``, for a map of ``size`` H x W."""
    x = t.unflatten(1, (size[0] // 2, size[1] // 2)).unflatten(0, (-1, 2, 2))
    return x.permute(0, 3, 1, 4, 2, 5).flatten(3, 4).flatten(1, 2)


class Layer(Block):
    """A transformer block whose sequences are those of ``to_places``; a graft sees the map."""

    def __init__(self, dim: int, drop_path: float):
        super().__init__(dim, HEADS, drop_path, expand=2, act=nn.SiLU, eps=1e-5)

    def graft_tokens(self, u: Tensor, size: tuple[int, int]) -> Tensor:
        return to_places(self.graft(from_places(u, size)))


def conv(inputs: int, outputs: int, side: int, stride: int = 1, groups: int = 1,
         act: bool = True) -> ConvNormAct:
    """Convolution, BatchNorm, SiLU; sizes round up."""
    return ConvNormAct(inputs, outputs, side, stride, groups=groups, apply_act=act,
                       act_layer=nn.SiLU)


class InvertedResidual(nn.Module):
    """Widen, filter every channel, narrow; a skip where shapes allow. B x C x H x W."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int):
        super().__init__()
        inner = expand * inputs
        self.skips = stride == 1 and inputs == outputs
        self.conv1_1x1 = conv(inputs, inner, 1)
        self.conv2_kxk = conv(inner, inner, 3, stride, groups=inner)
        self.conv3_1x1 = conv(inner, outputs, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3_1x1(self.conv2_kxk(self.conv1_1x1(x)))
        return x + y if self.skips else y


class MobileViTBlock(nn.Module):
    """A transformer between convolutions. B x C x H x W.

    Args:
        channels: of the map.
        dim: of the transformer.
        drop_paths: rate of each of its layers.
    """

    def __init__(self, channels: int, dim: int, drop_paths: Sequence[float]):
        super().__init__()
        self.conv_kxk = conv(channels, channels, 3)
        self.conv_1x1 = nn.Conv2d(channels, dim, 1, bias=False)
        self.transformer = nn.ModuleList(Layer(dim, rate) for rate in drop_paths)
        self.norm = nn.LayerNorm(dim)
        self.conv_proj = conv(dim, channels, 1)
        self.conv_fusion = conv(2 * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        even = tuple(side + side % 2 for side in size)
        y = resize(self.conv_1x1(self.conv_kxk(x)), even)
        t = to_places(y.permute(0, 2, 3, 1))
        for layer in self.transformer:
            t = layer(t, even)
        y = resize(from_places(self.norm(t), even).permute(0, 3, 1, 2), size)
        return self.conv_fusion(torch.cat([x, self.conv_proj(y)], 1))


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinearly, B x C x H x W; nothing where the size is right."""
    return x if x.shape[2:] == size else F.interpolate(x, size, mode='bilinear')


class MobileViT(Backbone):
    """MobileViT as a dense backbone, strides 4, 8, 16, 32.

    Args:
        arch: 'xxs', 'xs', 's', or a dict of dims (five stages', from stride 2 to 32), expand
            (of the inverted residuals), widths (of the three transformers), depths (inverted
            residuals at stride 4, then layers of the three transformers, then a 0 for the
            final convolution) and final (its channels).
        out_indices: 0 to 3 are the maps at strides 4 to 32, 4 is the last one behind the final
            1 x 1 convolution; default that one in place of 3.
        drop_path_rate: of the last transformer layer; grows linearly from 0. The published
            one has none.
        frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
    """

    def __init__(self, arch: str | dict = 'xxs', out_indices: Sequence[int] = (0, 1, 2, LAST),
                 drop_path_rate: float = 0., frozen_stages: int = -1, norm_eval: bool = False,
                 with_cp: bool = False, init_cfg: dict | None = None, **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        *depths, final = arch['depths']
        if len(depths) != 4 or final:
            raise UserError('MobileViT: depths must be four numbers and, for the final '
                            f'convolution, a 0; got {arch["depths"]}')
        self.depths = tuple(depths[:self.out_indices[-1] + 1])
        dims, expand = arch['dims'], arch['expand']
        channels = (*dims[1:], arch['final'])
        self.out_channels = tuple(channels[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2 ** min(i, LAST - 1) for i in self.out_indices)

        rates = torch.linspace(0, drop_path_rate, sum(depths[1:]), device='cpu').split(depths[1:])
        self.stem = conv(3, STEM, 3, 2)
        self.stages = nn.ModuleList([
            nn.Sequential(InvertedResidual(STEM, dims[0], 1, expand)),
            nn.Sequential(*(InvertedResidual(dims[min(i, 1)], dims[1], 1 if i else 2, expand)
                            for i in range(depths[0])))])
        for i, width, drop in zip(range(1, len(self.depths)), arch['widths'], rates):
            self.stages.append(nn.Sequential(
                InvertedResidual(dims[i], dims[i + 1], 2, expand),
                MobileViTBlock(dims[i + 1], width, drop.tolist())))
        if LAST in self.out_indices:
            self.final_conv = conv(dims[-1], arch['final'], 1)

        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        maps = {}
        for level, stage in enumerate(self.stages, -1):
            for block in stage:
                x = self.run(block, x)
            maps[level] = x
        if LAST in self.out_indices:
            maps[LAST] = self.final_conv(x)
        return tuple(maps[i].contiguous() for i in self.out_indices)

    def stage_id(self, name: str) -> int:
        """The residual at stride 2 belongs to the stem."""
        if match := _STAGE.match(name):
            return int(match[1])
        return len(self.depths) + 1 if name.startswith(('final_conv.', 'stages.')) else 0

    def layer_id(self, name: str) -> int:
        """A layer is an inverted residual at stride 4, later one of a transformer: what stands
        before that counts with its first layer, what stands behind it with its last."""
        stage = self.stage_id(name)
        if stage == 0 or stage > len(self.depths):
            return 0 if stage == 0 else self.num_layers + 1
        if _ENDING.match(name):
            return sum(self.depths[:stage])
        match = _RESIDUAL.match(name) or _LAYER.match(name)
        return sum(self.depths[:stage - 1]) + (int(match[1]) if match else 0) + 1

    @staticmethod
    def convert(state: dict[str, Tensor], net: Backbone) -> dict[str, Tensor]:
        """timm's names are ours, but for the classifier."""
        return {name: tensor for name, tensor in state.items() if not name.startswith('head.')}

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        """The cases, of GrafT's host without a graft, tap all five maps."""
        return dict(arch='xxs' if variant == 'host_mobilevit_xxs' else variant,
                    out_indices=(0, 1, 2, 3, LAST))


ARCHS = dict(
    xxs=dict(dims=(16, 24, 48, 64, 80), expand=2, widths=(64, 80, 96), depths=(3, 2, 4, 3, 0),
             final=320),
    xs=dict(dims=(32, 48, 64, 80, 96), expand=4, widths=(96, 120, 144), depths=(3, 2, 4, 3, 0),
            final=384),
    s=dict(dims=(32, 64, 96, 128, 160), expand=4, widths=(144, 192, 240), depths=(3, 2, 4, 3, 0),
           final=640),
)
register(MobileViT, ARCHS)
