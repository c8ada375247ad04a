"""CoAtNet (Dai et al., NeurIPS 2021), arXiv 2106.04803: convolution, then attention.

Two stages of MBConv blocks, two of transformer blocks, which attend to the whole map under a
bias for every relative position.

The authors published no code. timm has the paper's networks, without weights, and its own
``rw`` family, with weights; here are both, under timm's names, for any image size: odd maps
round up, position tables are resampled bilinearly, as the paper does, to the map at hand, and
the MLPs that replace them in ``rmlp`` networks are evaluated there (without timm's dropout).
A LayerNorm on every output is ours (``out_norm``). With the settings ``TF_BLOCKS`` the
networks consist of the blocks that the authors later published in google-research/maxvit, with
``PAPER_BLOCKS`` they also halve maps as the paper's equations say.

An ``rw`` network is another one than the paper's of that number: its activation is SiLU, its
MBConv blocks are a multiple of their input's width, not of their output's, and in the first
block of a stage attention runs at the width of the input. They expect images scaled to -1 ... 1,
mean and deviation 127.5; bn_0_rw ImageNet's. 3_rw, rmlp_2_rw and rmlp_3_rw start layer scales
at 1e-6.

variant          parameters  GMACs 224  512   800x1280  ImageNet-1K top-1 (published)
coatnet_0            23.7 M       4.55  27.2     154.1  82.0 (paper; 81.6 with PAPER_BLOCKS)
coatnet_1            40.9 M       8.64  54.4     342.9  83.5 (paper; 83.3)
coatnet_2            72.6 M      16.42  98.2     557.2  84.1 (paper; 84.1)
coatnet_3           163.1 M      36.45 209.0    1076.9  84.5 (paper, PAPER_BLOCKS)
coatnet_4           271.5 M      62.31 362.3    1931.9  88.1 at 512 (paper, ImageNet-21K)
nano_rw              14.6 M       2.38  15.0      93.9  81.70 (timm, as all below)
rmlp_nano_rw         14.6 M       2.59  16.1      98.2  82.06
0_rw                 26.7 M       4.41  27.4     168.0  82.40
bn_0_rw              26.7 M       4.65  28.6     173.0  82.39
1_rw                 41.0 M       7.99  50.7     323.0  83.62
2_rw                 72.8 M      15.02  90.3     519.7  86.58 (ImageNet-12K)
3_rw                163.6 M      33.32 191.9     999.8  not found
rmlp_0_rw            26.7 M       4.68  28.8     173.8  no weights
rmlp_1_rw            40.9 M       7.81  49.7     319.3  83.35
rmlp_1_rw2           41.0 M       8.07  51.1     324.6  84.94 (ImageNet-12K)
rmlp_2_rw            72.9 M      15.11  90.9     521.8  84.61, 86.54 (ImageNet-12K)
rmlp_3_rw           163.6 M      33.46 192.6    1002.7  no weights

Detection, segmentation: nothing published.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import torch
from timm.layers import DropPath, LayerNorm2d, LayerScale, Mlp, to_2tuple
from torch import Tensor, nn

from .base import Backbone
from .errors import UserError, closest
from .layers import relative_position_bias, resize_table
from .maxvit import HEAD, Attention, RelativeTable
from .mbconv import ACTS, Downsample, MBConv, Stem, Style, initialise
from .registry import register

NORMS = dict(layer=LayerNorm2d, batch=nn.BatchNorm2d)


class RelativeMlp(nn.Module):
    """Attention biases that an MLP makes from relative positions, for maps of any size."""

    def __init__(self, heads: int, hidden: int):
        super().__init__()
        self.mlp = Mlp(2, hidden, heads, act_layer=nn.ReLU)

    def forward(self, size: tuple[int, int]) -> Tensor:
        """1 x heads x (h * w) x (h * w) for a map of h x w tokens."""
        device = self.mlp.fc1.weight.device
        axes = [torch.arange(1. - side, side, device=device) for side in size]
        offsets = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)
        return relative_position_bias(self.mlp(offsets.sign() * offsets.abs().log1p()))[None]


class TransformerBlock(nn.Module):
    """Attention over a whole map and an MLP, each behind a norm. B x C x H x W.

    Args:
        inputs, outputs: channels.
        stride: 1, or 2: the map is halved.
        size: h, w of the map to which a table of position biases belongs.
        arch: the settings of the variant.
        drop_path: of both branches.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, size: tuple[int, int], arch: dict,
                 drop_path: float):
        super().__init__()
        channels = inputs if arch['widen_late'] else outputs
        heads = channels // HEAD
        rel_pos = (RelativeMlp(heads, arch['bias_hidden']) if arch['bias_hidden']
                   else RelativeTable(heads, size))
        norm = partial(NORMS[arch['norm']], eps=arch['norm_eps'])
        scale = (partial(LayerScale, outputs, arch['layer_scale']) if arch['layer_scale']
                 else nn.Identity)
        self.shortcut = self.down = nn.Identity()
        if stride == 2:
            self.shortcut = Downsample(inputs, outputs, arch['pool'], arch['shortcut_bias'])
            self.down = Downsample(inputs, inputs, arch['pool'], bias=False)
        self.norm1 = norm(inputs)
        self.attn = Attention(inputs, channels, outputs, rel_pos, by_head=True)
        self.ls1 = scale()
        self.norm2 = norm(outputs)
        self.mlp = Mlp(outputs, 4 * outputs, act_layer=ACTS[arch['mlp_act']])
        self.ls2 = scale()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.norm1(x)).permute(0, 2, 3, 1)
        size = y.shape[1:3]
        y = self.attn(y.flatten(1, 2), self.attn.rel_pos(size)).unflatten(1, size)
        x = self.shortcut(x) + self.drop_path(self.ls1(y)).permute(0, 3, 1, 2)
        y = self.mlp(self.norm2(x).permute(0, 2, 3, 1))
        return x + self.drop_path(self.ls2(y)).permute(0, 3, 1, 2)


class CoAtNet(Backbone):
    """CoAtNet as a dense backbone, strides 4, 8, 16, 32.

    Args:
        arch: a key of ``ARCHS``, or a dict of depths, dims and stem (channels of stages and of
            the stem's two convolutions), the settings of ``mbconv.Style``, and those of the
            transformer blocks: mlp_act (a key of ``mbconv.ACTS``), norm ('layer' or 'batch') and
            norm_eps, shortcut_bias, layer_scale (where it starts, None: there is none),
            bias_hidden (width of the MLP that makes position biases; None: a table does) and
            img_size (side, or height and width, of the images to which tables belong).
        out_norm: LayerNorm on every output.
        drop_path_rate: r; the authors' rule, r * b / N for block b of N counted from 0.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
        overrides: e.g. ``**TF_BLOCKS`` or ``img_size=384``.
    """

    added = ('norm',)

    def __init__(self, arch: str | dict = 'coatnet_nano_rw',
                 out_indices: Sequence[int] = (0, 1, 2, 3), drop_path_rate: float = 0.2,
                 out_norm: bool = True, frozen_stages: int = -1, norm_eval: bool = False,
                 with_cp: bool = False, init_cfg: dict | None = None, **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        for key, known in dict(norm=NORMS, mlp_act=ACTS).items():
            if arch[key] not in known:
                raise UserError(f'CoAtNet has no {key} {arch[key]!r}{closest(arch[key], known)}')
        style = Style.of(arch)
        last = self.out_indices[-1]
        self.depths = arch['depths'][:last + 1]
        self.out_channels = tuple(arch['dims'][i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)

        count = sum(arch['depths'])
        rates = iter([drop_path_rate * number / count for number in range(count)])
        self.stem = Stem(arch['stem'], style)
        self.stages = nn.ModuleList()
        inputs = arch['stem'][1]
        for stage, (dim, depth) in enumerate(zip(arch['dims'], self.depths)):
            size = tuple(-(-side // (4 * 2 ** stage)) for side in to_2tuple(arch['img_size']))
            blocks = nn.ModuleList()
            for number in range(depth):
                shape = inputs, dim, 1 if number else 2
                blocks.append(MBConv(*shape, style, next(rates)) if stage < 2
                              else TransformerBlock(*shape, size, arch, next(rates)))
                inputs = dim
            self.stages.append(nn.ModuleDict(dict(blocks=blocks)))
        for i, dim in zip(self.out_indices, self.out_channels):
            self.add_module(f'norm{i}', LayerNorm2d(dim) if out_norm else nn.Identity())
        initialise(self)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        outputs = []
        for i, stage in enumerate(self.stages):
            for block in stage['blocks']:
                x = self.run(block, x)
            if i in self.out_indices:
                outputs.append(self.get_submodule(f'norm{i}')(x).contiguous())
        return tuple(outputs)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters()
                if '.rel_pos.' in name or name.endswith('.gamma')}

    @staticmethod
    def convert(state: dict[str, Tensor], net: Backbone) -> dict[str, Tensor]:
        """timm's names are ours, but for the norm before a pool. Matrices may come as 1 x 1
        kernels, tables flat or of another size; the classifier goes with its norm."""
        own = net.state_dict()
        converted = {}
        for name, tensor in state.items():
            name = name.replace('.norm1.norm.', '.norm1.')
            if name.startswith(('head.', 'norm.')):
                continue
            if name in own and name.endswith('.relative_position_bias_table'):
                tensor = _fit_table(tensor, own[name].shape[1:])
            elif name in own and own[name].ndim == 2:
                tensor = tensor.flatten(1)
            converted[name] = tensor
        return converted

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        """Cases tap raw outputs. Tables belong to the case's image size, or, with the suffix
        '-resized_bias', to 224 x 224; '-tfblocks' and '-tfblocks_paper' are settings."""
        arch, *suffixes = variant.split('-')
        options = dict(arch=arch, out_norm=False, img_size=size)
        known = dict(resized_bias=dict(img_size=224), tfblocks=TF_BLOCKS,
                     tfblocks_paper=PAPER_BLOCKS)
        for suffix in suffixes:
            if suffix not in known:
                raise UserError(f'CoAtNet has no setting {suffix!r}{closest(suffix, known)}')
            options |= known[suffix]
        return options


def _fit_table(table: Tensor, size: Sequence[int]) -> Tensor:
    """A table of position biases in our layout, which is the authors', and of our size.

    Args:
        table: heads x rows x columns, by key minus query; or, as timm has it in its own
            networks, (rows * columns) x heads, by query minus key.
        size: rows and columns wanted. A flat table that has not so many entries is square.
    """
    if table.ndim == 2:
        side = math.isqrt(len(table))
        grid = tuple(size) if len(table) == math.prod(size) else (side, side)
        table = table.unflatten(0, grid).flip(0, 1).permute(2, 0, 1)
    return resize_table(table.permute(1, 2, 0), size, 'bilinear').permute(2, 0, 1)


TF_BLOCKS = dict(act='gelu_tanh', eps=1e-3, same=True, stem_bias=True, mlp_act='gelu_tanh',
                 norm_eps=1e-5)
PAPER_BLOCKS = TF_BLOCKS | dict(stride='expand', pool='max')

_PAPER = asdict(Style(act='gelu', eps=1e-5, same=False, stem_bias=False)) | dict(
    mlp_act='gelu', norm='layer', norm_eps=1e-6, shortcut_bias=True, layer_scale=None,
    bias_hidden=None, img_size=224)
_NANO_RW = _PAPER | dict(act='silu', widen_late=True)
_RW = _NANO_RW | dict(bias=False, pre_act=True)
_RELU = _RW | dict(se_act='relu')
_EARLY = _RELU | dict(se_early=True, shortcut_bias=False)

_NANO = dict(depths=(3, 4, 6, 3), dims=(64, 128, 256, 512), stem=(32, 64))
_0 = dict(depths=(2, 3, 7, 2), dims=(96, 192, 384, 768), stem=(32, 64))
_1 = dict(depths=(2, 6, 14, 2), dims=(96, 192, 384, 768), stem=(32, 64))
_2 = dict(depths=(2, 6, 14, 2), dims=(128, 256, 512, 1024), stem=(64, 128))
_3 = dict(depths=(2, 6, 14, 2), dims=(192, 384, 768, 1536), stem=(96, 192))
ARCHS = dict(
    coatnet_0=_PAPER | _0 | dict(depths=(2, 3, 5, 2), stem=(64, 64)),
    coatnet_1=_PAPER | _1 | dict(stem=(64, 64)),
    coatnet_2=_PAPER | _2 | dict(stem=(128, 128)),
    coatnet_3=_PAPER | _3 | dict(stem=(192, 192)),
    coatnet_4=_PAPER | _3 | dict(depths=(2, 12, 28, 2), stem=(192, 192)),
    coatnet_nano_rw=_NANO_RW | _NANO | dict(stride='pool'),
    coatnet_rmlp_nano_rw=_NANO_RW | _NANO | dict(bias_hidden=384),
    coatnet_0_rw=_EARLY | _0 | dict(stride='pool'),
    coatnet_bn_0_rw=_EARLY | _0 | dict(norm='batch'),
    coatnet_1_rw=_EARLY | _1,
    coatnet_2_rw=_RW | _2,
    coatnet_3_rw=_RW | _3 | dict(layer_scale=1e-6),
    coatnet_rmlp_0_rw=_RELU | _0 | dict(bias_hidden=512),
    coatnet_rmlp_1_rw=_EARLY | _1 | dict(stride='pool', pool='max3', bias_hidden=384),
    coatnet_rmlp_1_rw2=_RELU | _1 | dict(bias_hidden=512),
    coatnet_rmlp_2_rw=_RW | _2 | dict(bias_hidden=512, layer_scale=1e-6),
    coatnet_rmlp_3_rw=_RW | _3 | dict(bias_hidden=512, layer_scale=1e-6),
)
register(CoAtNet, ARCHS)
