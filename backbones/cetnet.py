"""CETNet-style: our reconstruction of CETNet (Wang et al., ECCV 2022), arXiv 2207.13317.

A hierarchical transformer whose token embeddings, the stem and what halves the map between
stages, are small stacks of convolutions ("convolutional embedding", CE).

No code was found, and of the paper we could read the abstract, the start of the introduction
and its results, as others recorded them. They tell the embeddings and the sizes of three
variants. Everything else is ours: widths, depths, Swin's shifted windows of 7 x 7, plain
3 x 3 convolutions (five in the stem, one between stages), and a depthwise convolution of
queries, keys and values as the local part of attention. Other networks may have these sizes
as well. No weights exist.

variant  parameters  GMACs 224   512  800x1280  published: parameters, GMACs 224
tiny         22.9 M       4.48  23.6      91.9  23.4 M, 4.3
small        33.0 M       7.10  37.3     145.5  34 M, 6.8
base         73.9 M      15.71  82.4     321.5  75 M, 15.1

Published are sizes with the classifier, which takes 0.5, 0.5 and 0.8 M. Without the products
of queries, keys and values ours have 4.33, 6.83 and 15.30 GMACs at 224. The accuracies of the
authors' networks, which these have not shown, are in suite/published/cetnet.yaml.
"""
from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from . import swin
from .base import Backbone
from .layers import in_windows, shift_mask
from .registry import register


def conv_unit(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """What CE is made of: a 3 x 3 convolution, its norm, GELU; sizes round up."""
    return nn.Sequential(OrderedDict(
        conv=nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        bn=nn.BatchNorm2d(outputs),
        act=nn.GELU()))


class ConvEmbedding(nn.Module):
    """CE: convolutions make the tokens, B x C x H x W -> B x H' x W' x D.

    Args:
        dims: C, the channels between two convolutions, D.
        strides: of each convolution.
    """

    def __init__(self, dims: Sequence[int], strides: Sequence[int]):
        super().__init__()
        self.units = nn.Sequential(*map(conv_unit, dims, dims[1:], strides))
        self.norm = nn.LayerNorm(dims[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.units(x).permute(0, 2, 3, 1))


class LocalWindowAttention(swin.WindowAttention):
    """Swin's attention, before which a depthwise convolution mixes queries, keys and values
    with their neighbours, across the borders of windows. B x H x W x C."""

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__(dim, heads, window)
        self.local = nn.Sequential(OrderedDict(
            conv=nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=False),
            bn=nn.BatchNorm2d(3 * dim)))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        shift = 0 if mask is None else self.window // 2
        qkv = self.local(self.qkv(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj(in_windows(lambda t: self.attend(t, mask), qkv, self.window, shift))


class Block(swin.Block):
    """Swin's block around the attention above. B x H x W x C."""

    def __init__(self, dim: int, heads: int, window: int, drop_path: float):
        super().__init__(dim, heads, window, drop_path)
        self.attn = LocalWindowAttention(dim, heads, window)


class CETNet(Backbone):
    """CETNet-style reconstruction as a dense backbone, strides 4, 8, 16, 32.

    Args:
        arch: 'tiny', 'small', 'base', or a dict of dim, depths, heads, window.
        drop_path_rate: of the last block; grows linearly from 0. The authors' is not known;
            ours: 0.2 for tiny, 0.3 for small, 0.5 for base.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
    """

    reconstruction = True

    def __init__(self, arch: str | dict = 'tiny', out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.2, frozen_stages: int = -1, norm_eval: bool = False,
                 with_cp: bool = False, init_cfg: dict | None = None, **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        last = self.out_indices[-1]
        self.window = arch['window']
        self.depths = arch['depths'][:last + 1]
        dims = [arch['dim'] * 2 ** stage for stage in range(last + 1)]
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)

        rates = iter(torch.linspace(0, drop_path_rate, sum(arch['depths']), device='cpu').tolist())
        dim = arch['dim']
        self.stem = ConvEmbedding((3, dim // 2, dim // 2, dim, dim, dim), (2, 1, 2, 1, 1))
        self.stages = nn.ModuleList()
        for stage, (dim, depth, heads) in enumerate(zip(dims, self.depths, arch['heads'])):
            blocks = [Block(dim, heads, self.window, next(rates)) for _ in range(depth)]
            self.stages.append(nn.ModuleDict(dict(blocks=nn.ModuleList(blocks))))
            if stage < last:
                self.stages[stage]['downsample'] = ConvEmbedding((dim, 2 * dim), (2,))
        for i, dim in zip(self.out_indices, self.out_channels):
            self.add_module(f'norm{i}', nn.LayerNorm(dim))

        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            elif isinstance(module, LocalWindowAttention):
                trunc_normal_(module.relative_position_bias_table, std=0.02)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        outputs = []
        for i, stage in enumerate(self.stages):
            mask = shift_mask(*x.shape[1:3], self.window, x.device)
            for number, block in enumerate(stage['blocks']):
                x = self.run(block, x, mask if number % 2 else None)
            if i in self.out_indices:
                norm = self.get_submodule(f'norm{i}')
                outputs.append(norm(x).permute(0, 3, 1, 2).contiguous())
            if 'downsample' in stage:
                x = stage['downsample'](x.permute(0, 3, 1, 2))
        return tuple(outputs)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith('_bias_table')}

    # Nobody published weights; those trained here may go to another window, as Swin's.
    convert = staticmethod(swin.Swin.convert)


ARCHS = dict(
    tiny=dict(dim=64, depths=(2, 2, 18, 2), heads=(2, 4, 8, 16), window=7),
    small=dict(dim=64, depths=(4, 4, 30, 2), heads=(2, 4, 8, 16), window=7),
    base=dict(dim=96, depths=(4, 4, 30, 2), heads=(3, 6, 12, 24), window=7),
)
register(CETNet, ARCHS)
