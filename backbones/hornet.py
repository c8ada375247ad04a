"""HorNet (Rao et al., NeurIPS 2022), arXiv 2207.14284.

ConvNeXt's frame around a recursive gated convolution: one spatial operator, then as many
gated products as the stage's order (2, 3, 4, 5). The operator is a 7 x 7 depthwise
convolution; in the GF variants stages 3 and 4 multiply half of the channels' spectra by a
learned filter instead and convolve the other half 3 x 3.

Official code: raoyongming/HorNet; this is the network of its detection and segmentation
code, with a fresh LayerNorm on every output. Same names and numbers; maps are kept B x H x
W x C, so that 1 x 1 convolutions are linear layers. Layer scales start at 1, not 1e-6, so
that blocks count from the first step of a run from scratch; checkpoints overwrite them.

variant          parameters  GMACs 224  512   800x1280  ImageNet-1K top-1 (published)
tiny_7x7             21.9 M       3.97  20.7      81.0  82.8
tiny_gf              22.5 M       3.89  20.3      79.4  83.0
small_7x7            48.8 M       8.81  46.0     179.9  83.8
small_gf             49.6 M       8.69  45.4     177.4  84.0
base_7x7             86.2 M      15.57  81.3     317.7  84.2
base_gf              87.4 M      15.41  80.5     314.4  84.3
base_gf_img384       91.1 M      15.41  80.5     314.4
large_7x7           193.0 M      34.79 181.8     710.1
large_gf            194.8 M      34.56 180.5     705.2
large_gf_img384     200.3 M      34.56 180.5     705.2

Fourier transforms are not counted. Published for 7x7 / GF (HorNet's READMEs; large from
ImageNet-22K): Cascade Mask R-CNN 3x, box and mask AP: tiny 51.7, 44.8 / 52.4, 45.6; small
52.7, 45.6 / 53.3, 46.3; base 53.3, 46.1 / 54.0, 46.9; large 55.4, 48.0 / 56.0, 48.6. UperNet
mIoU, one scale and several: tiny 48.1, 48.9 / 49.2, 49.3; small 49.2, 49.8 / 50.0, 50.5; base
50.0, 50.5 / 50.5, 50.9; large 54.1, 54.5 / 55.0, 55.2, its GF filters all 24 x 13 and 12 x 7.
"""
from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from torch import Tensor, nn

from .base import Backbone
from .layers import DepthwiseConv2d, resize_table
from .registry import register

_SCALE = 1 / 3  # of the spatial operator's output, in every variant
_DOWN = re.compile(r'downsample_layers\.(\d)\.')
_THIRD = re.compile(r'stages\.2\.(\d+)\.')
_POINTWISE = re.compile(r'\.(?:proj_in|proj_out|pws\.\d+)\.weight$')
_FILTER = 'complex_weight'

log = logging.getLogger('backbones')


class DepthwiseConv(DepthwiseConv2d):
    """A depthwise convolution that keeps the size. B x H x W x C."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class GlobalLocalFilter(nn.Module):
    """Half of the channels see their neighbours, half the whole map. B x H x W x C.

    Args:
        dim: channels, even.
        size: rows and columns of the stored filter, in bins of a real Fourier transform;
            14 x 8 fits maps of 14 x 14 (or 15 columns) exactly.
    """

    def __init__(self, dim: int, size: tuple[int, int]):
        super().__init__()
        self.pre_norm = nn.LayerNorm(dim, eps=1e-6)
        self.dw = DepthwiseConv(dim // 2, 3, bias=False)
        self.complex_weight = nn.Parameter(torch.empty(dim // 2, *size, 2))
        self.post_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        local, distant = self.pre_norm(x).chunk(2, -1)
        local, distant = self.dw(local), self.filter(distant)
        # Channel by channel in turns: each order of the gated convolution gets both kinds.
        return self.post_norm(torch.stack((local, distant), -1).flatten(3))

    def filter(self, x: Tensor) -> Tensor:
        """Multiply spectra by the filter, resampled to their size; always in float32."""
        rows, columns = x.shape[1:3]
        weight = resize_filter(self.complex_weight.float(), (rows, columns // 2 + 1))
        weight = torch.view_as_complex(weight.permute(1, 2, 0, 3).contiguous())
        spectrum = torch.fft.rfft2(x.float(), dim=(1, 2), norm='ortho') * weight
        # The size tells odd widths from even ones.
        return torch.fft.irfft2(spectrum, (rows, columns), (1, 2), norm='ortho').to(x.dtype)


def resize_filter(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample a spectral filter, with rows in the order of an FFT: the outer bins stay the
    outer ones, and negative frequencies are not told from positive ones, as in the official
    code.

    Args:
        weight: C x rows x columns x 2, real and imaginary parts.
        size: the new rows and columns.
    """
    table = resize_table(weight.permute(1, 2, 0, 3).flatten(2), size, 'bilinear', True)
    return table.unflatten(2, (-1, 2)).permute(2, 0, 1, 3)


class GatedConv(nn.Module):
    """Recursive gated convolution, gnconv in the paper. B x H x W x C.

    Args:
        dim: channels, a multiple of 2 ** (order - 1).
        order: number of gated products; their widths double up to ``dim``.
        filter_size: of a ``GlobalLocalFilter``; None for a 7 x 7 depthwise convolution.
    """

    def __init__(self, dim: int, order: int, filter_size: tuple[int, int] | None):
        super().__init__()
        self.dims = [dim // 2 ** k for k in reversed(range(order))]
        total = sum(self.dims)
        self.proj_in = nn.Linear(dim, self.dims[0] + total)
        self.dwconv = (GlobalLocalFilter(total, filter_size) if filter_size
                       else DepthwiseConv(total, 7))
        self.pws = nn.ModuleList(nn.Linear(*dims) for dims in pairwise(self.dims))
        self.proj_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x, context = self.proj_in(x).split((self.dims[0], sum(self.dims)), -1)
        first, *others = (self.dwconv(context) * _SCALE).split(self.dims, -1)
        x = x * first
        for widen, gate in zip(self.pws, others):
            x = widen(x) * gate
        return self.proj_out(x)


class Block(nn.Module):
    """Gated convolution and MLP, each behind a norm and with a skip. B x H x W x C."""

    def __init__(self, dim: int, order: int, filter_size: tuple[int, int] | None,
                 drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.gnconv = GatedConv(dim, order, filter_size)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma1 = nn.Parameter(torch.ones(dim))
        self.gamma2 = nn.Parameter(torch.ones(dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.gamma1 * self.gnconv(self.norm1(x)))
        hidden = F.gelu(self.pwconv1(self.norm2(x)))
        return x + self.drop_path(self.gamma2 * self.pwconv2(hidden))


class HorNet(Backbone):
    """HorNet as a dense backbone, strides 4, 8, 16, 32; sizes round down.

    Args:
        arch: 'tiny_7x7', 'tiny_gf', 'small_7x7', 'small_gf', 'base_7x7', 'base_gf',
            'base_gf_img384', 'large_7x7', 'large_gf', 'large_gf_img384', or a dict of dim,
            depths, orders, filters: per stage the size of its stored filters, or None for
            7 x 7 convolutions.
        drop_path_rate: of the last block; grows linearly from 0.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
    """

    added = ('norm',)
    size_rule = 'floor'
    num_layers = 12  # as the authors count, whatever the depths

    def __init__(self, arch: str | dict = 'tiny_7x7', out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.4, frozen_stages: int = -1, norm_eval: bool = False,
                 with_cp: bool = False, init_cfg: dict | None = None, **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        last = self.out_indices[-1]
        self.depths = arch['depths'][:last + 1]
        dims = [arch['dim'] * 2 ** stage for stage in range(last + 1)]
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)

        rates = iter(torch.linspace(0, drop_path_rate, sum(arch['depths']), device='cpu').tolist())
        self.downsample_layers = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), LayerNorm2d(dims[0]))])
        for inputs, outputs in pairwise(dims):
            self.downsample_layers.append(
                nn.Sequential(LayerNorm2d(inputs), nn.Conv2d(inputs, outputs, 2, 2)))
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(dim, order, size, next(rates)) for _ in range(depth))
            for dim, depth, order, size in zip(dims, self.depths, arch['orders'],
                                               arch['filters']))
        for i, dim in zip(self.out_indices, self.out_channels):
            self.add_module(f'norm{i}', LayerNorm2d(dim))

        # All else as PyTorch has it, as in the official dense code. The stem's biases matter:
        # without them black padding stays 0, and a norm of zeros, which divides by the root of
        # its eps, can make gradients a thousand times larger.
        for module in self.modules():
            if isinstance(module, Block):
                for linear in (module.pwconv1, module.pwconv2):
                    trunc_normal_(linear.weight, std=0.02)
                    nn.init.zeros_(linear.bias)
            elif isinstance(module, GlobalLocalFilter):
                trunc_normal_(module.complex_weight, std=0.02)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = []
        for i, (downsample, blocks) in enumerate(zip(self.downsample_layers, self.stages)):
            x = downsample(x).permute(0, 2, 3, 1)
            for block in blocks:
                x = self.run(block, x)
            x = x.permute(0, 3, 1, 2)
            if i in self.out_indices:
                outputs.append(self.get_submodule(f'norm{i}')(x).contiguous())
        return tuple(outputs)

    def stage_id(self, name: str) -> int:
        if match := _DOWN.match(name):
            stage = int(match[1])
            return stage + 1 if stage else 0
        return super().stage_id(name)

    def layer_id(self, name: str) -> int:
        """The authors' numbering: 1, 2, 3 to 11 and 12 in the four stages; in the third two
        blocks share a number."""
        stage = self.stage_id(name)
        if stage > len(self.depths):
            return self.num_layers + 1
        if match := _THIRD.match(name):
            return min(3 + int(match[1]) // 2, 11)
        return (0, 1, 2, 3, 12)[stage]

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(('gamma1', 'gamma2'))}

    @staticmethod
    def convert(state: dict[str, Tensor], net: Backbone) -> dict[str, Tensor]:
        """Official names are ours, and mmpretrain's nearly; 1 x 1 convolutions become linear
        layers. The classifier's last norm goes with its head, as in the official dense code.
        Filters of another size are resampled, and a line of the log says so."""
        own = net.state_dict()
        converted, resized = {}, []
        for name, tensor in state.items():
            if name.startswith(('norm.', 'head.')):
                continue
            name = name.replace('.gnconv.projs.', '.gnconv.pws.')
            name = re.sub(r'(\.gamma[12])\.weight$', r'\1', name)
            if _POINTWISE.search(name):
                tensor = tensor.flatten(1)
            if name.endswith(_FILTER) and name in own:
                old, new = tuple(tensor.shape[1:3]), tuple(own[name].shape[1:3])
                tensor = resize_filter(tensor, new)
                if old != new and (old, new) not in resized:
                    resized.append((old, new))
            converted[name] = tensor
        if resized:
            sizes = ', '.join(f'{a}x{b} to {c}x{d}' for (a, b), (c, d) in resized)
            log.info(f'HorNet: filters resampled from {sizes}; to keep them as they are, give '
                     'their sizes as filters=')
        return converted

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        """The suffix ``_hHwW`` gives the filters of stage 3; those of stage 4 fit half the
        map."""
        match = re.fullmatch(r'(.+)_h(\d+)w(\d+)', variant)
        if not match:
            return dict(arch=variant)
        height, width = int(match[2]), int(match[3])
        return dict(arch=match[1], filters=(None, None, (height, width),
                                            (height // 2, (width + 1) // 2)))


_CONV = dict(depths=(2, 3, 18, 2), orders=(2, 3, 4, 5), filters=(None, None, None, None))
_GF = dict(_CONV, filters=(None, None, (14, 8), (7, 4)))
_GF_384 = dict(_CONV, filters=(None, None, (24, 13), (12, 7)))
ARCHS = dict(
    tiny_7x7=dict(dim=64, **_CONV),
    tiny_gf=dict(dim=64, **_GF),
    small_7x7=dict(dim=96, **_CONV),
    small_gf=dict(dim=96, **_GF),
    base_7x7=dict(dim=128, **_CONV),
    base_gf=dict(dim=128, **_GF),
    base_gf_img384=dict(dim=128, **_GF_384),
    large_7x7=dict(dim=192, **_CONV),
    large_gf=dict(dim=192, **_GF),
    large_gf_img384=dict(dim=192, **_GF_384),
)
register(HorNet, ARCHS)
