"""Swin Transformer (Liu et al., ICCV 2021), arXiv 2103.14030.

Attention inside 7 x 7 windows with a learned relative position bias; every other block
shifts the windows by half a window. Patch merging halves the map between stages.

Official code: microsoft/Swin-Transformer; this is the network of its detection code
(SwinTransformer/Swin-Transformer-Object-Detection), which rolls *after* padding, keeps
padded tokens as keys, shifts also where the map is one window, and puts a fresh LayerNorm
on every output. Same names and numbers; fused attention; the bias without an index table.

variant    parameters  GMACs 224  512   800x1280  ImageNet-1K top-1 (published)
tiny           27.5 M       4.49  25.0      94.6  81.3
small          48.8 M       8.74  48.4     185.4  83.0
base           86.7 M      15.43  85.4     327.2  83.5
large         195.0 M      34.47 190.6     730.7  86.3 (ImageNet-22K)
base_384       86.9 M      23.42  91.2     351.0  84.5 at 384
large_384     195.2 M      51.13 200.9     772.9  87.3 at 384 (ImageNet-22K)

Published with tiny: Mask R-CNN 43.7 box, 39.8 mask AP (1x), 46.0, 41.6 (3x); Cascade
Mask R-CNN 50.4, 43.7 (3x); UperNet 44.51 mIoU, 45.81 multi-scale.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn

from .base import Backbone
from .graftable import Graftable
from .layers import in_windows, pad_to_multiple, resize_flat_table, shift_mask, window_bias
from .registry import register

_TABLE = 'relative_position_bias_table'


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, shifted where a mask is given. B x H x W x C."""

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.window = window
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        shift = 0 if mask is None else self.window // 2
        return self.proj(in_windows(lambda t: self.attend(self.qkv(t), mask), x,
                                    self.window, shift))

    def attend(self, qkv: Tensor, mask: Tensor | None) -> Tensor:
        """Attention between the projections; windows x tokens x 3C -> windows x tokens x C."""
        bias = window_bias(self.relative_position_bias_table, mask, len(qkv))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype))
        return out.transpose(1, 2).flatten(2)


class Block(Graftable):
    """Window attention and MLP, each behind a norm and with a skip. B x H x W x C."""

    def __init__(self, dim: int, heads: int, window: int, drop_path: float):
        super().__init__(dim, heads, window)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        u = self.norm1(x)
        x = x + self.drop_path(self.attn(u, mask))
        if self.graft is not None:
            x = x + self.drop_path(self.graft(u))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Image to tokens of 4 x 4 pixels: B x 3 x H x W -> B x H/4 x W/4 x C, rounded up."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 4, 4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        below, right = -x.shape[2] % 4, -x.shape[3] % 4
        return self.norm(self.proj(F.pad(x, (0, right, 0, below))).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """2 x 2 tokens become one of twice the channels; odd sizes round up. B x H x W x C."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_multiple(x, (2, 2))
        # The official order runs down the columns.
        x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], -1)
        return self.reduction(self.norm(x))


class Swin(Backbone):
    """Swin Transformer as a dense backbone, strides 4, 8, 16, 32.

    Args:
        arch: 'tiny', 'small', 'base', 'large', 'base_384', 'large_384', or a dict of dim,
            depths, heads, window.
        drop_path_rate: of the last block; grows linearly from 0.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
    """

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
        self.patch_embed = PatchEmbed(arch['dim'])
        self.layers = nn.ModuleList()
        for stage, (dim, depth, heads) in enumerate(zip(dims, self.depths, arch['heads'])):
            blocks = [Block(dim, heads, self.window, next(rates)) for _ in range(depth)]
            self.layers.append(nn.ModuleDict(dict(blocks=nn.ModuleList(blocks))))
            if stage < last:
                self.layers[stage]['downsample'] = PatchMerging(dim)
        for i, dim in zip(self.out_indices, self.out_channels):
            self.add_module(f'norm{i}', nn.LayerNorm(dim))

        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WindowAttention):
                trunc_normal_(module.relative_position_bias_table, std=0.02)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.patch_embed(x)
        outputs = []
        for i, layer in enumerate(self.layers):
            mask = shift_mask(*x.shape[1:3], self.window, x.device)
            for number, block in enumerate(layer['blocks']):
                x = self.run(block, x, mask if number % 2 else None)
            if i in self.out_indices:
                norm = self.get_submodule(f'norm{i}')
                outputs.append(norm(x).permute(0, 3, 1, 2).contiguous())
            if 'downsample' in layer:
                x = layer['downsample'](x)
        return tuple(outputs)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(_TABLE)}

    @staticmethod
    def convert(state: dict[str, Tensor], net: Backbone) -> dict[str, Tensor]:
        """Official names are ours. The classifier's last norm goes with its head, as in the
        official detection code; tables of another window are resampled."""
        own = net.state_dict()
        converted = {}
        for name, tensor in state.items():
            if name.startswith(('norm.', 'head.')):
                continue
            if name.endswith(('relative_position_index', 'attn_mask')):
                continue
            if name.endswith(_TABLE) and name in own:
                tensor = resize_flat_table(tensor, own[name])
            converted[name] = tensor
        return converted

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        """The official cases came as hosts of GrafT, without a graft."""
        return dict(arch='tiny' if variant == 'host_swin_t' else variant)


ARCHS = dict(
    tiny=dict(dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), window=7),
    small=dict(dim=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24), window=7),
    base=dict(dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), window=7),
    large=dict(dim=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), window=7),
    base_384=dict(dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), window=12),
    large_384=dict(dim=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), window=12),
)
register(Swin, ARCHS)
