"""EdgeNeXt (Maaz et al., CADL at ECCV 2022), arXiv 2206.10589.

Depthwise convolutions whose kernels grow with the stage, from 3 to 9, each with an MLP.
Stages 2-4 end in one SDTA encoder: depthwise convolutions along which groups of channels are
handed on, then attention between channels instead of positions (XCA), linear in the map's
size. Sizes round down: what does not fill a patch is dropped.

Official code: mmaaz60/EdgeNeXt (classification only). Same names and numbers, both forms:
LayerNorm and GELU, or BatchNorm and Hardswish (``_bn_hs``). timm has the first one, at the
same speed and numbers; its names load, too. Differs from the official code: a LayerNorm on
every output (``out_norm``, ours, as in the detection code of ConvNeXt, from which EdgeNeXt
is derived); layer scales start at 1, as there, not at 1e-6 (checkpoints overwrite them; with
AdamW either start learns from scratch); temperatures take no weight decay, which the official
code means, but does not reach.

variant         parameters  GMACs 224  512   800x1280  ImageNet-1K top-1 (published, at 256)
xx_small             1.2 M       0.20   1.0       4.0  71.2
x_small              2.1 M       0.41   2.1       8.3  75.0
small                5.3 M       0.96   5.0      19.6  79.4; 81.1 (USI training)
base                17.9 M       2.93  15.3      59.8  82.5; 83.7 (USI), 83.3 (ImageNet-21K)
xx_small_bn_hs       1.2 M       0.20   1.0       4.0  70.3
x_small_bn_hs        2.1 M       0.41   2.1       8.3  74.9
small_bn_hs          5.3 M       0.96   5.0      19.6  78.4

Published with small: SSDLite 27.9 box AP, DeepLabv3 80.2 mIoU on VOC 2012 (both second-hand);
Mask R-CNN, Cascade Mask R-CNN, ADE20K: nothing found.
"""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, trunc_normal_
from torch import Tensor, nn

from .base import Backbone
from .errors import UserError, closest
from .layers import DepthwiseConv2d
from .registry import register

KERNELS = (3, 5, 7, 9)  # of the convolution encoders, by stage
GROUPS = (0, 2, 3, 4)  # of channels in a stage's SDTA encoder; the first stage has none
WAVES = 32  # channels of the position encoding per axis

_DOWNSAMPLE = re.compile(r'downsample_layers\.(\d)\.')
_BLOCK = re.compile(r'stages\.\d\.(\d+)\.')
_SCALES = ('.gamma', '.gamma_xca', '.temperature')
# timm's names -> the official ones.
_RENAMED = (
    (r'^(stem|stages)_(\d)\.', r'\1.\2.'),  # its features_only
    (r'^stem\.', 'downsample_layers.0.'),
    (r'^stages\.(\d)\.downsample\.', r'downsample_layers.\1.'),
    (r'^stages\.(\d)\.blocks\.', r'stages.\1.'),
    (r'\.conv_dw\.', '.dwconv.'),
    (r'\.mlp\.fc', '.pwconv'),
)


class Form(NamedTuple):
    """What the two published forms of the network differ in."""

    norm: Callable[[int], nn.Module]  # channels -> norm of a B x C x H x W map
    act: type[nn.Module]
    bias: bool  # of convolutions between stages and of depthwise ones before a norm
    norm_stream: bool  # XCA's norm acts on the residual stream, not on its branch


FORMS = dict(
    ln_gelu=Form(LayerNorm2d, nn.GELU, bias=True, norm_stream=False),
    bn_hs=Form(nn.BatchNorm2d, nn.Hardswish, bias=False, norm_stream=True),
)


class PositionEncoding(nn.Module):
    """Sines and cosines of row and column, in sixteen wavelengths, projected to C channels."""

    def __init__(self, dim: int):
        super().__init__()
        self.token_projection = nn.Conv2d(2 * WAVES, dim, 1)

    def forward(self, height: int, width: int) -> Tensor:
        """1 x C x height x width."""
        weight = self.token_projection.weight
        rows = self.waves(height, weight.device)[:, None].expand(-1, width, -1)
        columns = self.waves(width, weight.device).expand(height, -1, -1)
        waves = torch.cat([rows, columns], -1)[None].permute(0, 3, 1, 2)
        return self.token_projection(waves.to(weight.dtype))

    @staticmethod
    def waves(size: int, device: torch.device) -> Tensor:
        """size x WAVES, sine and cosine of a wavelength side by side, float32."""
        position = torch.arange(1, size + 1, dtype=torch.float32, device=device)
        exponent = torch.arange(0, WAVES, 2, dtype=torch.float32, device=device) / WAVES
        angle = (position / (size + 1e-6) * 2 * math.pi)[:, None] / 10000 ** exponent
        return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


class CrossCovarianceAttention(nn.Module):
    """XCA: channels of a head attend to each other, by their cosine over all positions.
    B x N x C."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        q, k, v = self.qkv(t).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 4, 1)
        # A plain product: the matrix is as small as a head, whatever the size of the map.
        cosine = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        out = (cosine * self.temperature).softmax(-1) @ v
        return self.proj(out.flatten(1, 2).transpose(1, 2))


class Encoder(nn.Module):
    """What both encoders end in: a norm and an MLP, added to the encoder's input."""

    def __init__(self, dim: int, form: Form, layer_scale: float, drop_path: float):
        super().__init__()
        self.norm = form.norm(dim)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = form.act()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), float(layer_scale)))
        self.drop_path = DropPath(drop_path)

    def mlp(self, x: Tensor) -> Tensor:
        """The residual branch behind its spatial part. B x C x H x W."""
        x = self.norm(x).permute(0, 2, 3, 1)
        x = self.pwconv2(self.act(self.pwconv1(x)))
        return self.drop_path(self.gamma * x).permute(0, 3, 1, 2)


class ConvEncoder(Encoder):
    """Depthwise convolution and MLP. B x C x H x W."""

    def __init__(self, dim: int, kernel: int, form: Form, layer_scale: float, drop_path: float):
        super().__init__(dim, form, layer_scale, drop_path)
        self.dwconv = DepthwiseConv2d(dim, kernel, bias=form.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.dwconv(x))


class SDTAEncoder(Encoder):
    """Split depthwise transpose attention and MLP. B x C x H x W.

    The shortcut is the input: what split convolutions, position encoding and attention make
    of it reaches the output through the MLP alone.
    """

    def __init__(self, dim: int, heads: int, groups: int, position: bool, form: Form,
                 layer_scale: float, drop_path: float):
        super().__init__(dim, form, layer_scale, drop_path)
        self.norm_stream = form.norm_stream
        self.width = width = math.ceil(dim / groups)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width)
                                   for _ in range(groups - 1))
        self.pos_embd = PositionEncoding(dim) if position else None
        self.norm_xca = form.norm(dim)
        self.xca = CrossCovarianceAttention(dim, heads)
        self.gamma_xca = nn.Parameter(torch.full((dim,), float(layer_scale)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        if self.norm_stream:
            y = self.norm_xca(y)
        if self.pos_embd is not None:
            y = y + self.pos_embd(*y.shape[2:])
        return x + self.mlp(y + self.attend(y if self.norm_stream else self.norm_xca(y)))

    def mix(self, x: Tensor) -> Tensor:
        """Every group but the last is convolved, together with what the one before became."""
        *groups, last = x.split(self.width, 1)
        mixed = []
        for conv, group in zip(self.convs, groups, strict=True):
            mixed.append(conv(mixed[-1] + group if mixed else group))
        return torch.cat([*mixed, last], 1)

    def attend(self, x: Tensor) -> Tensor:
        t = self.xca(x.permute(0, 2, 3, 1).flatten(1, 2))
        t = self.drop_path(self.gamma_xca * t)
        return t.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class EdgeNeXt(Backbone):
    """EdgeNeXt as a dense backbone, strides 4, 8, 16, 32; odd sizes round down.

    Args:
        arch: 'xx_small', 'x_small', 'small', 'base', 'xx_small_bn_hs', 'x_small_bn_hs',
            'small_bn_hs', or a dict of dims, depths, heads, form ('ln_gelu' or 'bn_hs'),
            layer_scale (initial gain of every residual branch) and out_norm (LayerNorm on
            every output; the official network has none).
        drop_path_rate: of the last block; grows linearly from 0.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
    """

    added = ('norm0.', 'norm1.', 'norm2.', 'norm3.')
    size_rule = 'floor'

    def __init__(self, arch: str | dict = 'xx_small', out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.1, frozen_stages: int = -1, norm_eval: bool = False,
                 with_cp: bool = False, init_cfg: dict | None = None, **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        if arch['form'] not in FORMS:
            raise UserError(f'EdgeNeXt has no form {arch["form"]!r}{closest(arch["form"], FORMS)}')
        form, scale = FORMS[arch['form']], arch['layer_scale']
        last = self.out_indices[-1]
        dims = arch['dims'][:last + 1]
        self.depths = arch['depths'][:last + 1]
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)

        rates = iter(torch.linspace(0, drop_path_rate, sum(arch['depths']), device='cpu').tolist())
        self.downsample_layers = nn.ModuleList([nn.Sequential(
            nn.Conv2d(3, dims[0], 4, 4, bias=form.bias), form.norm(dims[0]))])
        for before, dim in zip(dims, dims[1:]):
            self.downsample_layers.append(nn.Sequential(
                form.norm(before), nn.Conv2d(before, dim, 2, 2, bias=form.bias)))
        self.stages = nn.ModuleList()
        for stage, (dim, depth) in enumerate(zip(dims, self.depths)):
            groups = GROUPS[stage]
            blocks = [ConvEncoder(dim, KERNELS[stage], form, scale, next(rates))
                      for _ in range(depth - bool(groups))]
            if groups:
                blocks.append(SDTAEncoder(dim, arch['heads'], groups, stage == 1, form, scale,
                                          next(rates)))
            self.stages.append(nn.ModuleList(blocks))
        for i, dim in zip(self.out_indices, self.out_channels):
            self.add_module(f'norm{i}', LayerNorm2d(dim) if arch['out_norm'] else nn.Identity())

        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = x.contiguous(memory_format=torch.channels_last)
        outputs = []
        for i, (downsample, blocks) in enumerate(zip(self.downsample_layers, self.stages)):
            x = downsample(x)
            for block in blocks:
                x = self.run(block, x)
            if i in self.out_indices:
                outputs.append(self.get_submodule(f'norm{i}')(x).contiguous())
        return tuple(outputs)

    def stage_id(self, name: str) -> int:
        """What leads into a stage belongs to it; what leads into the first is the stem."""
        if match := _DOWNSAMPLE.match(name):
            stage = int(match[1])
            return stage and stage + 1
        return super().stage_id(name)

    def layer_id(self, name: str) -> int:
        """What leads into a stage counts with the first block."""
        stage = self.stage_id(name)
        if 0 < stage <= len(self.depths):
            match = _BLOCK.match(name)
            return sum(self.depths[:stage - 1]) + (int(match[1]) if match else 0) + 1
        return super().layer_id(name)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(_SCALES)}

    @staticmethod
    def convert(state: dict[str, Tensor], net: Backbone) -> dict[str, Tensor]:
        """Official names are ours, timm's become them; the classifier's norm and head go."""
        converted = {}
        for name, tensor in state.items():
            if not name.startswith(('norm.', 'head.')):
                for theirs, ours in _RENAMED:
                    name = re.sub(theirs, ours, name)
                converted[name] = tensor
        return converted

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        """The official cases tap raw stage outputs."""
        return dict(arch=variant, out_norm=False)


_LN = dict(form='ln_gelu', layer_scale=1., out_norm=True)
_BN = dict(form='bn_hs', layer_scale=1., out_norm=True)
ARCHS = dict(
    xx_small=dict(dims=(24, 48, 88, 168), depths=(2, 2, 6, 2), heads=4, **_LN),
    x_small=dict(dims=(32, 64, 100, 192), depths=(3, 3, 9, 3), heads=4, **_LN),
    small=dict(dims=(48, 96, 160, 304), depths=(3, 3, 9, 3), heads=8, **_LN),
    base=dict(dims=(80, 160, 288, 584), depths=(3, 3, 9, 3), heads=8, **_LN),
    xx_small_bn_hs=dict(dims=(24, 48, 88, 168), depths=(2, 2, 6, 2), heads=4, **_BN),
    x_small_bn_hs=dict(dims=(32, 64, 100, 192), depths=(3, 3, 9, 3), heads=4, **_BN),
    small_bn_hs=dict(dims=(48, 96, 160, 304), depths=(3, 3, 9, 3), heads=8, **_BN),
)
register(EdgeNeXt, ARCHS)
