"""DilateFormer (Jiao et al., IEEE TMM 2023), arXiv 2302.01791.

Stages 1-2: local attention whose heads are split over dilation rates 1, 2, 3 (MSDA).
Stages 3-4: global attention. A convolutional stem, and a depthwise position encoding
in every block.

Official code: JIAOJIAYUASD/dilateformer (classification only; written from the paper).
Differs from it: any input size; a LayerNorm on every output (``out_norm``, ours, as in
Swin's detection code: nothing was published); nine shifted views instead of unfold and
fused global attention, same numbers; trains in float32, which the official code cannot.

variant  parameters  GMACs 224  512   800x1280  ImageNet-1K top-1 (published)
tiny         16.7 M       3.16  19.6     119.3  82.1
small        23.5 M       4.59  28.1     167.1  83.3
base         46.7 M       9.92  58.6     323.8  84.9 (token labelling)
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn

from .base import Backbone
from .graftable import Graftable
from .registry import register


def dilated_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, dilation: int) -> Tensor:
    """Every position attends to its 3 x 3 neighbours at distance ``dilation``.

    Neighbours outside the map have key and value zero and stay in the softmax, as in
    the official code; nothing is masked.

    Args:
        q, k, v: B x C x H x W.
        heads: C is cut into this many consecutive slices.
        dilation: step between neighbours, in pixels.

    Returns:
        B x C x H x W.
    """
    height, width = q.shape[-2:]
    steps = (0, dilation, 2 * dilation)
    windows = [(..., slice(y, y + height), slice(x, x + width)) for y in steps for x in steps]

    def views(t: Tensor) -> list[Tensor]:
        padded = F.pad(t, (dilation,) * 4).unflatten(1, (heads, -1))
        return [padded[window] for window in windows]

    q = q.unflatten(1, (heads, -1))
    logits = torch.stack([(q * view).sum(2, keepdim=True) for view in views(k)])
    weights = (logits * q.shape[2] ** -0.5).softmax(0)
    first, *others = zip(weights, views(v))
    out = torch.mul(*first)
    for weight, view in others:
        out.addcmul_(weight, view)
    return out.flatten(1, 2)


class MultiDilatedAttention(nn.Module):
    """MSDA: consecutive groups of heads, one dilation rate each. B x H x W x C."""

    def __init__(self, dim: int, heads: int, dilations: Sequence[int]):
        super().__init__()
        self.heads = heads // len(dilations)
        self.dilations = dilations
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        # Row-major maps: the shifted views are then contiguous along a row.
        qkv = self.qkv(x.permute(0, 3, 1, 2).contiguous())
        groups = zip(self.dilations, *(t.chunk(len(self.dilations), 1) for t in qkv.chunk(3, 1)))
        out = [dilated_attention(q, k, v, self.heads, r) for r, q, k, v in groups]
        return self.proj(torch.cat(out, 1).permute(0, 2, 3, 1))

    def elementwise_macs(self, x: Tensor) -> int:
        """Products of nine keys and nine values with every query, see ``suite.complexity``."""
        return 2 * 9 * x.numel()


class GlobalAttention(nn.Module):
    """Multi-head attention over all positions of a map. B x H x W x C."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(x.shape))


class Block(Graftable):
    """Position encoding, attention, MLP, each with a skip. B x C x H x W.

    Args:
        dim, heads: channels and heads.
        attn: the attention, B x H x W x C.
        reach: side of the square that it sees; None: all.
        drop_path: rate.
    """

    def __init__(self, dim: int, heads: int, attn: nn.Module, reach: int | None,
                 drop_path: float):
        super().__init__(dim, heads, window=reach, eps=1e-6)
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = (x + self.pos_embed(x)).permute(0, 2, 3, 1)
        u = self.norm1(x)
        x = x + self.drop_path(self.attn(u))
        if self.graft is not None:
            x = x + self.drop_path(self.graft(u))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.permute(0, 3, 1, 2)


class Stem(nn.Module):
    """Four 3 x 3 convolutions to stride 4; the last one bare. Sizes round up."""

    def __init__(self, dim: int):
        super().__init__()

        def conv(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)

        def act(channels: int) -> tuple[nn.Module, nn.Module]:
            return nn.BatchNorm2d(channels), nn.GELU()

        self.proj = nn.Sequential(conv(3, 16, 1), *act(16), conv(16, 32, 2), *act(32),
                                  conv(32, 64, 1), *act(64), conv(64, dim, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Downsample(nn.Module):
    """Halve the map (rounding up), double the channels."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(dim, 2 * dim, 3, 2, padding=1),
                                  nn.BatchNorm2d(2 * dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class DilateFormer(Backbone):
    """DilateFormer as a dense backbone, strides 4, 8, 16, 32.

    Args:
        arch: 'tiny', 'small', 'base', or a dict of dim, depths, heads, dilations.
        drop_path_rate: of the last block; grows linearly from 0.
        out_norm: LayerNorm on every output; the official network has none.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
    """

    def __init__(self, arch: str | dict = 'tiny', out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.1, out_norm: bool = True, frozen_stages: int = -1,
                 norm_eval: bool = False, with_cp: bool = False,
                 init_cfg: dict | None = None, **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        last = self.out_indices[-1]
        self.depths = arch['depths'][:last + 1]
        dims = [arch['dim'] * 2 ** stage for stage in range(last + 1)]
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)

        rates = iter(torch.linspace(0, drop_path_rate, sum(arch['depths']), device='cpu').tolist())
        self.patch_embed = Stem(arch['dim'])
        self.stages = nn.ModuleList()
        for stage, (dim, depth, heads) in enumerate(zip(dims, self.depths, arch['heads'])):
            blocks = []
            for _ in range(depth):
                attn = (MultiDilatedAttention(dim, heads, arch['dilations']) if stage < 2
                        else GlobalAttention(dim, heads))
                reach = 2 * max(arch['dilations']) + 1 if stage < 2 else None
                blocks.append(Block(dim, heads, attn, reach, next(rates)))
            self.stages.append(nn.ModuleDict(dict(blocks=nn.ModuleList(blocks))))
            if stage < last:
                self.stages[stage]['downsample'] = Downsample(dim)
        for i, dim in zip(self.out_indices, self.out_channels):
            self.add_module(f'norm{i}', nn.LayerNorm(dim, eps=1e-6) if out_norm else nn.Identity())

        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.patch_embed(x)
        outputs = []
        for i, stage in enumerate(self.stages):
            for block in stage['blocks']:
                x = self.run(block, x)
            if i in self.out_indices:
                norm = self.get_submodule(f'norm{i}')
                outputs.append(norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous())
            if 'downsample' in stage:
                x = stage['downsample'](x)
        return tuple(outputs)

    @staticmethod
    def convert(state: dict[str, Tensor], net: Backbone) -> dict[str, Tensor]:
        """Official names are ours, but for the final norm, which is our last output's."""
        return {('norm3.' + name.removeprefix('norm.') if name.startswith('norm.') else name):
                tensor for name, tensor in state.items() if not name.startswith('head.')}

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        """The official cases tap raw stage outputs."""
        return dict(arch=variant, out_norm=False)


ARCHS = dict(
    tiny=dict(dim=72, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), dilations=(1, 2, 3)),
    small=dict(dim=72, depths=(3, 5, 8, 3), heads=(3, 6, 12, 24), dilations=(1, 2, 3)),
    base=dict(dim=96, depths=(4, 8, 10, 3), heads=(3, 6, 12, 24), dilations=(1, 2, 3)),
)
register(DilateFormer, ARCHS)
