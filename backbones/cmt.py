"""CMT (Guo et al., CVPR 2022), arXiv 2107.06263.

Blocks of a depthwise convolution, attention whose keys and values a strided convolution
gathers on the grid of stride 32, and a convolutional MLP with a shortcut inside. In the
convolutions the activation stands before the norm. A table holds a bias for every position
of a query and of a key, shared by the blocks of a stage; it is absolute, whatever its name.

Official code: ggjy/CMT.pytorch, a classifier of square images of one size; the authors'
detection code was never published. Same names and numbers; fused attention. Ours are:

* Any size. Tables belong to images of ``img_size`` and are resampled for others in every
  forward pass, as the paper is said to do: bicubically, the queries' grid and then the keys'.
* The resampled table is never made, it would take 0.5 GB at 800 x 1344: it is a product of two
  small matrices, which attention takes as further channels of queries and keys.
* Images are padded with zeros, below and right, to multiples of 32, and maps cropped.
* A LayerNorm on every output (``out_norm``).

variant  parameters  img_size, GMACs there  GMACs 224  512  800x1280  ImageNet-1K top-1 (published)
cmt_ti        7.7 M       160         0.63       1.31   9.7      77.2  79.0
cmt_xs       13.4 M       192         1.53       2.20  16.2     129.2  81.8
cmt_s        24.3 M       224         4.00       4.00  28.9     214.4  83.5
cmt_b        43.7 M       256         9.27       7.25  49.1     349.6  84.5

Further channels count: at 800 x 1280 without them 58.0, 92.9, 150.7, 249.5. Published with
cmt_s (the VAN paper quoting CMT): Mask R-CNN 1x 44.6 box, 40.7 mask AP; RetinaNet 1x 44.3.
"""
from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath, to_2tuple, trunc_normal_
from torch import Tensor, nn

from .base import Backbone
from .errors import UserError
from .layers import DepthwiseConv2d, resize_table
from .registry import register

_STAGES = 'abcd'
_STAGE = re.compile(r'(?:patch_embed|relative_pos|blocks)_([a-d])')
_BLOCK = re.compile(r'blocks_[a-d]\.(\d+)\.')
_TABLE = 'relative_pos_'
_MOST_CHANNELS = 128  # that a bias may add to queries and keys; more would cost more than a mask

log = logging.getLogger('backbones')


def resample(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Position biases for maps of another size: the grid of queries is resampled for every
    key, then the grid of keys for every query.

    The second step is linear, and so a product with what becomes of the unit vectors. It is
    left to the caller, because its result can be large.

    Args:
        table: heads x queries x keys, positions row by row.
        old, new: rows and columns of keys; queries have a multiple of both.

    Returns:
        heads x new queries x keys and new keys x keys. The resampled table is the first times
        the second transposed.
    """
    heads, step = len(table), math.isqrt(table.shape[1] // table.shape[2])
    grid = table.permute(1, 0, 2).flatten(1).unflatten(0, [step * side for side in old])
    grid = resize_table(grid, [step * side for side in new])
    queries = grid.flatten(0, 1).unflatten(1, (heads, -1)).transpose(0, 1)
    units = torch.eye(table.shape[2], dtype=table.dtype, device=table.device)
    return queries, resize_table(units.unflatten(0, old), new).flatten(0, 1)


def biased_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor,
                     factor: Tensor | None) -> Tensor:
    """Attention with a bias on every logit, given whole or as a product.

    Args:
        q: B x heads x N x d.
        k, v: B x heads x M x d.
        bias: heads x N x M; with a factor heads x N x n, and then the bias is bias @ factor.T.
        factor: M x n.

    Returns:
        B x heads x N x d.
    """
    if factor is None:
        return F.scaled_dot_product_attention(q, k, v, bias[None].to(q.dtype))
    d = q.shape[-1]
    # (q, bias) . (k, factor) = q . k + bias . factor; fused kernels take equal widths alone.
    bias = (bias * d ** 0.5).to(q.dtype).expand(len(q), -1, -1, -1)
    q = torch.cat((q, bias), -1)
    k = torch.cat((k, factor.to(k.dtype).expand(*k.shape[:3], -1)), -1)
    width = -(-q.shape[-1] // 8) * 8
    q, k, v = (F.pad(t, (0, width - t.shape[-1])) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=d ** -0.5)[..., :d]


class Attention(nn.Module):
    """Multi-head attention with few keys and values. B x H x W x C.

    Args:
        dim: channels C.
        heads: consecutive slices of the channels.
        step: keys and values come from patches of this side.
    """

    def __init__(self, dim: int, heads: int, step: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.sr = nn.Sequential(nn.Conv2d(dim, dim, step, step, groups=dim),
                                nn.BatchNorm2d(dim)) if step > 1 else None

    def forward(self, x: Tensor, bias: Tensor, factor: Tensor | None) -> Tensor:
        def heads(t: Tensor) -> Tensor:
            return t.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)

        patches = self.sr(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if self.sr else x
        q, k, v = heads(self.q(x)), heads(self.k(patches)), heads(self.v(patches))
        out = biased_attention(q, k, v, bias, factor)
        return self.proj(out.transpose(1, 2).reshape(x.shape))


class Mlp(nn.Module):
    """Widen, convolve with a shortcut, narrow. B x C x H x W."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.GELU(), nn.BatchNorm2d(hidden))
        self.proj = DepthwiseConv2d(hidden, 3)
        self.proj_bn = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Sequential(nn.Conv2d(hidden, dim, 1), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.conv2(self.proj_bn(F.gelu(x + self.proj(x))))


class Block(nn.Module):
    """Convolution, attention and MLP, each with a skip. B x C x H x W."""

    def __init__(self, dim: int, heads: int, step: int, hidden: int, drop_path: float):
        super().__init__()
        self.proj = DepthwiseConv2d(dim, 3)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, step)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, bias: Tensor, factor: Tensor | None) -> Tensor:
        x = (x + self.proj(x)).permute(0, 2, 3, 1)
        x = x + self.drop_path(self.attn(self.norm1(x), bias, factor))
        hidden = self.mlp(self.norm2(x).permute(0, 3, 1, 2))
        return x.permute(0, 3, 1, 2) + self.drop_path(hidden)


class PatchEmbed(nn.Module):
    """2 x 2 positions become one: B x C x H x W -> B x D x H/2 x W/2."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, 2, 2)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class CMT(Backbone):
    """CMT as a dense backbone, strides 4, 8, 16, 32.

    Args:
        arch: 'cmt_ti', 'cmt_xs', 'cmt_s', 'cmt_b', or a dict of stem and dim (channels, dim of
            the first stage), depths, ratio (of the MLPs' hidden channels) and img_size (side,
            or height and width, of the images to which the tables belong; rounded up to
            multiples of 32). With the size of all images nothing is resampled.
        drop_path_rate: of the last block; grows linearly from 0.
        out_norm: LayerNorm on every output; the official network has none.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
    """

    added = ('norm',)

    def __init__(self, arch: str | dict = 'cmt_ti', out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.1, out_norm: bool = True, frozen_stages: int = -1,
                 norm_eval: bool = False, with_cp: bool = False, init_cfg: dict | None = None,
                 **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        self.grid = _grid(arch['img_size'])
        last = self.out_indices[-1]
        self.depths = arch['depths'][:last + 1]
        dims = [arch['dim'] * 2 ** stage for stage in range(last + 1)]
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)

        rates = iter(torch.linspace(0, drop_path_rate, sum(arch['depths']), device='cpu').tolist())
        width, keys = arch['stem'], math.prod(self.grid)
        for i, inputs in enumerate((3, width, width), 1):
            self.add_module(f'stem_conv{i}', nn.Conv2d(inputs, width, 3, 2 if i == 1 else 1, 1))
            self.add_module(f'stem_norm{i}', nn.BatchNorm2d(width))
        for i, (inputs, dim, depth) in enumerate(zip((width, *dims), dims, self.depths)):
            heads, step, letter = 2 ** i, 8 // 2 ** i, _STAGES[i]
            hidden = int(dim * arch['ratio'])
            self.add_module(f'patch_embed_{letter}', PatchEmbed(inputs, dim))
            self.register_parameter(f'{_TABLE}{letter}', nn.Parameter(
                torch.randn(heads, keys * step ** 2, keys)))
            self.add_module(f'blocks_{letter}', nn.ModuleList(
                Block(dim, heads, step, hidden, next(rates)) for _ in range(depth)))
            if i in self.out_indices:
                self.add_module(f'norm{i}', nn.LayerNorm(dim) if out_norm else nn.Identity())

        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out')
                nn.init.zeros_(module.bias)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % 32, 0, -height % 32))
        grid = tuple(side // 32 for side in x.shape[2:])
        for i in (1, 2, 3):
            x = F.gelu(self.get_submodule(f'stem_conv{i}')(x))
            x = self.get_submodule(f'stem_norm{i}')(x)
        outputs = []
        for i, letter in enumerate(_STAGES[:len(self.depths)]):
            x = self.get_submodule(f'patch_embed_{letter}')(x)
            bias = self.position_bias(letter, grid)
            for block in self.get_submodule(f'blocks_{letter}'):
                x = self.run(block, x, *bias)
            if i in self.out_indices:
                rows, columns = (-(-side // (4 * 2 ** i)) for side in (height, width))
                y = x[:, :, :rows, :columns].permute(0, 2, 3, 1)
                norm = self.get_submodule(f'norm{i}')
                outputs.append(norm(y).permute(0, 3, 1, 2).contiguous())
        return tuple(outputs)

    def position_bias(self, letter: str, grid: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """The bias of a stage for a grid of keys: as ``biased_attention`` takes it."""
        table = self.get_parameter(_TABLE + letter)
        if grid == self.grid:
            return table, None
        bias, factor = resample(table, self.grid, grid)
        return (bias, factor) if len(factor.T) <= _MOST_CHANNELS else (bias @ factor.T, None)

    def stage_id(self, name: str) -> int:
        if match := _STAGE.match(name):
            return _STAGES.index(match[1]) + 1
        return super().stage_id(name)

    def layer_id(self, name: str) -> int:
        """Patch embedding and table of a stage count with its first block."""
        if not _STAGE.match(name):
            return super().layer_id(name)
        match = _BLOCK.match(name)
        before = sum(self.depths[:self.stage_id(name) - 1])
        return before + (int(match[1]) if match else 0) + 1

    @staticmethod
    def convert(state: dict[str, Tensor], net: Backbone) -> dict[str, Tensor]:
        """Official names are ours. Tables of another size are resampled, and a line of the
        log says so; that size must be square, as the official ones are."""
        own = net.state_dict()
        converted, old = {}, None
        for name, tensor in state.items():
            if name.startswith(('_fc.', '_bn.', 'head.')):
                continue
            if name.startswith(_TABLE) and name in own and tensor.shape != own[name].shape:
                old = (math.isqrt(tensor.shape[2]),) * 2
                if math.prod(old) != tensor.shape[2]:
                    raise UserError(f'CMT: {name} with {tensor.shape[2]} keys is not of a square '
                                    'image; give the size that it is of as img_size=(H, W)')
                bias, factor = resample(tensor, old, net.grid)
                tensor = bias @ factor.T
            converted[name] = tensor
        if old:
            sizes = ' to '.join('x'.join(str(32 * side) for side in grid)
                                for grid in (old, net.grid))
            log.info(f'CMT: position tables resampled from {sizes} pixels; to keep them as they '
                     f'are, build with img_size={32 * old[0]}')
        return converted

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        """Tables are those of the case's size, or of 224 x 224 in '-resized_bias'; the official
        network taps raw maps."""
        arch, *suffixes = variant.split('-')
        return dict(arch=arch, img_size=224 if 'resized_bias' in suffixes else size,
                    out_norm=False)


def _grid(img_size: int | Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the keys of an image."""
    pair = to_2tuple(img_size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise UserError(f'CMT: img_size must be a side or (H, W) in pixels, got {img_size!r}')
    rows, columns = (-(-side // 32) for side in pair)
    return rows, columns


ARCHS = dict(
    cmt_ti=dict(dim=46, stem=16, depths=(2, 2, 10, 2), ratio=3.6, img_size=160),
    cmt_xs=dict(dim=52, stem=16, depths=(3, 3, 12, 3), ratio=3.77, img_size=192),
    cmt_s=dict(dim=64, stem=32, depths=(3, 3, 16, 3), ratio=4, img_size=224),
    cmt_b=dict(dim=76, stem=38, depths=(4, 4, 20, 4), ratio=4, img_size=256),
)
register(CMT, ARCHS)
