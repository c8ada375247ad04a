"""MRL-like (our reconstruction), around the idea of "MRL: Learning to Mix with Attention and
Convolutions" (Mohta, Suganuma, Tanaka, 2022), arXiv 2208.13975.

A block mixes twice. Regionally: convolutions make one token of every region, and attention
mixes the regions of the whole image. Locally: every pixel gets its region's token added, and a
depthwise convolution mixes the neighbours.

There is no public code. Known are the order of the two steps and their means (the abstract);
stages, widths, depths, heads, regions, kernels, norms and the position encoding are ours. No
result of the paper is one of this network, so none stands here. Regions are 32 pixels wide in
every stage: attention always works on the grid of stride 32, at any image size.

variant                parameters  GMACs 224   512  800x1280
tiny                       18.6 M       2.33  12.5      53.8
small                      31.5 M       4.12  22.2      95.6
tiny, orientations=4        5.0 M       2.49  13.4      57.2
small, orientations=4       8.2 M       4.28  23.0      99.0

For H&E images the paper takes group convolutions into the block; which ones is not known. Ours,
``orientations=4``, are those of Cohen and Welling (arXiv 1602.07576) for rotations by 90
degrees, in all layers: channels 4c ... 4c + 3 of every map are one feature in four orientations;
every weight, also of norms and attention, is learned for one of them and turned for the others.
Widths stay, parameters are a quarter; on the CPU a step takes 1.2 times as long (2 x 256 x 256).

* The network is equivariant for images whose height and width are multiples of 32: turn one, and
  every map turns, each four channels moving on by one place. ``net(x.rot90(1, (2, 3)))`` has
  ``y.rot90(1, (2, 3)).unflatten(1, (-1, 4)).roll(1, 2).flatten(1, 2)`` for each y of ``net(x)``.
  A maximum or mean over each four channels just turns.
* It is not at other sizes, which are padded below and on the right only.
* Neck and head see ordinary maps; they are not equivariant.
* Strided patches are 8 and 4 pixels wide, not 7 and 3: on an even grid no odd ones can lie
  symmetrically.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from .base import Backbone
from .dilateformer import GlobalAttention
from .errors import UserError
from .layers import pad_to_multiple
from .registry import register

_REGION = 32  # pixels of the image


def along(conv: nn.Module, x: Tensor) -> Tensor:
    """A module for B x C x H x W, applied to B x H x W x C."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Turned(nn.Module):
    """The weights of features in four orientations, from those for the first orientation.

    An output in the next orientation has its kernels turned, and takes each from the next
    orientation of an input. Colours have none, and a depthwise kernel keeps its own.
    """

    def forward(self, weight: Tensor) -> Tensor:
        """N/4 x ... -> N x ...: weight or bias of N outputs, gain or offset of N channels."""
        oriented = weight.ndim > 1 and weight.shape[1] % 4 == 0
        turns = []
        for turn in range(4):
            turned = weight
            if oriented:
                turned = turned.unflatten(1, (-1, 4)).roll(turn, 2).flatten(1, 2)
            if weight.ndim == 4:
                turned = turned.rot90(turn, (2, 3))
            turns.append(turned)
        return torch.stack(turns, 1).flatten(0, 1)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """N x ... -> N/4 x ...: learning starts from a part of what an ordinary layer has."""
        return weight[::4].contiguous()


class Patches(nn.Module):
    """Overlapping patches, and their norm: B x H x W x C -> B x H/stride x W/stride x D,
    rounded up.

    Args:
        inputs: C.
        outputs: D.
        stride: 4 or 2; patches are 2 * stride - 1 pixels wide.
        even: they are 2 * stride wide; on whole multiples of the stride they then lie
            symmetrically.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, even: bool):
        super().__init__()
        self.stride = stride
        side, padding = (2 * stride, stride // 2) if even else (2 * stride - 1, stride - 1)
        self.proj = nn.Conv2d(inputs, outputs, side, stride, padding)
        self.norm = nn.LayerNorm(outputs, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(along(self.proj, pad_to_multiple(x, (self.stride, self.stride))))


class RegionalMixing(nn.Module):
    """A token of every region, mixed with those of all other regions.

    Args:
        dim: channels C.
        heads: consecutive slices of the channels.
        side: of a region, in pixels of the map.
    """

    def __init__(self, dim: int, heads: int, side: int):
        super().__init__()
        self.side = side
        self.gather = nn.Conv2d(dim, dim, side, side, groups=dim) if side > 1 else nn.Identity()
        self.proj = nn.Linear(dim, dim)
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.attn = GlobalAttention(dim, heads)

    def forward(self, x: Tensor) -> Tensor:
        """B x H x W x C -> B x H/side x W/side x C, rounded up."""
        x = self.proj(along(self.gather, pad_to_multiple(x, (self.side, self.side))))
        x = x + along(self.pos_embed, x)
        return x + self.attn(self.norm(x))


class LocalMixing(nn.Module):
    """Neighbours mixed, each together with its region.

    Args:
        dim: channels C.
        side: of a region, in pixels of the map.
    """

    def __init__(self, dim: int, side: int):
        super().__init__()
        self.spread = nn.Upsample(scale_factor=side) if side > 1 else nn.Identity()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, regions: Tensor) -> Tensor:
        """B x H x W x C and B x H/side x W/side x C -> B x H x W x C."""
        height, width = x.shape[1:3]
        x = x + along(self.spread, regions)[:, :height, :width]
        return self.proj(F.gelu(along(self.conv, x)))


class Block(nn.Module):
    """Regional and local mixing behind one norm, MLP behind another, with skips.
    B x H x W x C."""

    def __init__(self, dim: int, heads: int, side: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.regional = RegionalMixing(dim, heads, side)
        self.local = LocalMixing(dim, side)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.drop_path(self.local(y, self.regional(y)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class MRL(Backbone):
    """MRL-like (our reconstruction) dense backbone, strides 4, 8, 16, 32.

    Args:
        arch: 'tiny', 'small', or a dict of dims, depths, heads, orientations.
        orientations: 1, or 4 for group convolutions: maps turn with the image, under the
            conditions at the head of this file.
        drop_path_rate: of the last block; grows linearly from 0.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
    """

    reconstruction = True

    def __init__(self, arch: str | dict = 'tiny', out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.1, frozen_stages: int = -1, norm_eval: bool = False,
                 with_cp: bool = False, init_cfg: dict | None = None, **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        orientations = arch['orientations']
        if orientations not in (1, 4):
            raise UserError(f'MRL: orientations must be 1 or 4, got {orientations!r}')
        for dim, heads in zip(arch['dims'], arch['heads']):
            if dim % (heads * orientations):
                raise UserError(f'MRL: {dim} channels do not divide into {heads} heads of '
                                f'features in {orientations} orientations; change dims or heads')
        last = self.out_indices[-1]
        self.depths = arch['depths'][:last + 1]
        dims = arch['dims'][:last + 1]
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)

        rates = iter(torch.linspace(0, drop_path_rate, sum(arch['depths']), device='cpu').tolist())
        oriented = orientations == 4
        self.patch_embed = Patches(3, dims[0], 4, even=oriented)
        self.stages = nn.ModuleList()
        for stage, (dim, depth, heads) in enumerate(zip(dims, self.depths, arch['heads'])):
            side = _REGION // (4 * 2 ** stage)
            blocks = [Block(dim, heads, side, next(rates)) for _ in range(depth)]
            self.stages.append(nn.ModuleDict(dict(blocks=nn.ModuleList(blocks))))
            if stage < last:
                self.stages[stage]['downsample'] = Patches(dim, dims[stage + 1], 2, even=oriented)
        for i, dim in zip(self.out_indices, self.out_channels):
            self.add_module(f'norm{i}', nn.LayerNorm(dim, eps=1e-6))

        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if oriented:
            for module in list(self.modules()):
                for name, _ in list(module.named_parameters(recurse=False)):
                    register_parametrization(module, name, Turned())
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.patch_embed(x.permute(0, 2, 3, 1))
        outputs = []
        for i, stage in enumerate(self.stages):
            for block in stage['blocks']:
                x = self.run(block, x)
            if i in self.out_indices:
                norm = self.get_submodule(f'norm{i}')
                outputs.append(norm(x).permute(0, 3, 1, 2).contiguous())
            if 'downsample' in stage:
                x = stage['downsample'](x)
        return tuple(outputs)

    def no_weight_decay(self) -> set[str]:
        """Those of norms, also where ``Turned`` keeps them under other names."""
        return {f'{name}.{key}' for name, module in self.named_modules()
                if isinstance(module, nn.LayerNorm) for key, _ in module.named_parameters()}


ARCHS = dict(
    tiny=dict(dims=(64, 128, 320, 512), depths=(2, 2, 6, 2), heads=(2, 4, 10, 16),
              orientations=1),
    small=dict(dims=(64, 128, 320, 512), depths=(3, 4, 12, 3), heads=(2, 4, 10, 16),
               orientations=1),
)
register(MRL, ARCHS)
