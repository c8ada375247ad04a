"""LeViT (Graham et al., ICCV 2021), arXiv 2104.01136.

Four strided convolutions bring the image to stride 16. Three stages of global attention
follow; the last two begin with an attention whose queries are every second token. BatchNorm
everywhere; a learned bias per head and absolute offset is the only position information.

Official code: facebookresearch/LeViT (classification at 224 only). A dense form was never
published; ours: maps of the stem at strides 4 and 8 behind their Hardswish, of the stages
at 16, 32 and 64, with no further norms. Bias tables keep their shape of 224 and are resized
to the tokens at hand, bilinearly, so that the smallest and the largest offset keep their
bias. No index tables, fused attention, same numbers.

variant  parameters  GMACs 224   512  800x1280  ImageNet-1K top-1 (published, distilled)
128s          7.0 M       0.30   2.0      15.4  76.6
128           8.4 M       0.41   2.9      23.9  78.6
192          10.2 M       0.66   4.6      36.5  80.0
256          17.9 M       1.13   7.4      53.5  81.6
384          37.6 M       2.35  14.5      93.1  82.6

Memory grows with the square of the area: at 800 x 1344, stage 1 has 4,200 tokens, and its
bias for four heads takes 282 MB, for one layer at a time. A whole forward pass of 128s peaks
at 0.3 GB there, a training step at 1.3 GB per image (1.0 GB under ``with_cp``; CPU, float32).
Official code and timm keep each layer's gathered bias in eval mode; ours, made anew, costs
some 5 % of a forward pass at 224, and no stale copy survives the loading of weights.

No dense results were published.
"""
from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from .base import Backbone
from .errors import UserError
from .layers import relative_position_bias, resize_table
from .registry import register

_TABLE = 'attention_biases'
_TIMM = (('.attn_downsample.', '.'), ('q.ln.', 'q.'), ('proj.ln.', 'proj.1.'),
         ('mlp.ln1.', 'mlp.0.'), ('mlp.ln2.', 'mlp.2.'), ('linear.', 'c.'))


def offset_bias(table: Tensor, step: int) -> Tensor:
    """Additive attention mask from a table over absolute offsets.

    The bias of query (y, x) on key (y', x') is ``table[:, |step y - y'|, |step x - x'|]``.

    Args:
        table: heads x H x W, the size of the keys' map.
        step: queries stand at every ``step``-th row and column of the keys.

    Returns:
        heads x (H/step * W/step) x (H * W), rounded up, queries before keys.
    """
    height, width = table.shape[1:]
    mirrored = F.pad(table, (width - 1, 0, height - 1, 0), mode='reflect')
    return relative_position_bias(mirrored.permute(1, 2, 0), step)


class ConvBN(nn.Module):
    """Strided 3 x 3 convolution, BatchNorm, activation; sizes round up. B x C x H x W."""

    def __init__(self, inputs: int, outputs: int, act: type[nn.Module] = nn.Hardswish):
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        if self.bn.training:
            return self.act(self.bn(self.c(x)))
        # A fixed norm scales the kernel, which is smaller than the map.
        scale = self.bn.weight * (self.bn.running_var + self.bn.eps).rsqrt()
        shift = self.bn.bias - self.bn.running_mean * scale
        kernel = self.c.weight * scale[:, None, None, None]
        return self.act(F.conv2d(x, kernel, shift, self.c.stride, self.c.padding))


class LinearBN(nn.Sequential):
    """Linear layer and BatchNorm over all tokens of a batch. Tokens x C."""

    def __init__(self, inputs: int, outputs: int, gain: float = 1.):
        super().__init__(OrderedDict(c=nn.Linear(inputs, outputs, bias=False),
                                     bn=nn.BatchNorm1d(outputs)))
        nn.init.constant_(self.bn.weight, gain)


class Mlp(nn.Sequential):
    """Two layers with twice the width between them; starts as zero. B x H x W x C."""

    def __init__(self, dim: int):
        super().__init__(LinearBN(dim, 2 * dim), nn.Hardswish(), LinearBN(2 * dim, dim, gain=0.))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 2)).view(x.shape)


class BiasedAttention(nn.Module):
    """What both attentions share: heads, bias table, output projection.

    Args:
        dim: of the output.
        heads: number of heads.
        widths: of one head's queries and keys, and of its values.
        side: of the keys' map at 224 pixels, for which the table is.
        gain: of the last norm at the start.
    """

    def __init__(self, dim: int, heads: int, widths: tuple[int, int], side: int, gain: float):
        super().__init__()
        self.heads = heads
        self.widths = widths
        self.side = side
        self.attention_biases = nn.Parameter(torch.zeros(heads, side ** 2))
        self.proj = nn.Sequential(nn.Hardswish(), LinearBN(heads * widths[1], dim, gain))

    def split(self, t: Tensor, batch: int) -> Tensor:
        """(B * N) x (heads * C), all of one head side by side -> B x heads x N x C."""
        return t.view(batch, -1, self.heads, t.shape[1] // self.heads).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int], step: int) -> Tensor:
        """Attention of every ``step``-th position of a map of this size to all positions.

        Returns:
            B x H/step x W/step x C, rounded up.
        """
        table = self.attention_biases.view(self.heads, self.side, self.side).permute(1, 2, 0)
        table = resize_table(table, size, 'bilinear', align_corners=True).permute(2, 0, 1)
        bias = offset_bias(table, step)[None].to(q.dtype)
        scale = q.shape[-1] ** -0.5
        if q.is_cpu and not bias.requires_grad:
            # The fused kernel for CPUs wants one width, and no mask that learns.
            q, k = (F.pad(t, (0, v.shape[-1] - t.shape[-1])) for t in (q, k))
        out = F.scaled_dot_product_attention(q, k, v, bias, scale=scale)
        out = self.proj(out.transpose(1, 2).flatten(2).flatten(0, 1))
        return out.view(len(q), -1, -(-size[1] // step), out.shape[-1])


class Attention(BiasedAttention):
    """Attention between all positions of a map. B x H x W x C."""

    def __init__(self, dim: int, heads: int, key_dim: int, side: int):
        super().__init__(dim, heads, (key_dim, 2 * key_dim), side, gain=0.)
        self.qkv = LinearBN(dim, heads * 4 * key_dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.split(self.qkv(x.flatten(0, 2)), len(x))
        q, k, v = qkv.split((self.widths[0], *self.widths), -1)
        return self.attend(q, k, v, x.shape[1:3], step=1)


class Block(nn.Module):
    """Attention and MLP, each with a skip. B x C x H x W."""

    def __init__(self, dim: int, heads: int, key_dim: int, side: int, drop_path: float):
        super().__init__()
        self.attn = Attention(dim, heads, key_dim, side)
        self.mlp = Mlp(dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = x + self.drop_path(self.attn(x))
        x = x + self.drop_path(self.mlp(x))
        return x.permute(0, 3, 1, 2)


class Shrink(BiasedAttention):
    """Halve a map, rounding up: every second position attends to all. Then an MLP with a
    skip. B x C x H x W."""

    def __init__(self, inputs: int, outputs: int, key_dim: int, side: int, drop_path: float):
        heads = inputs // key_dim
        super().__init__(outputs, heads, (key_dim, 4 * key_dim), side, gain=1.)
        self.kv = LinearBN(inputs, heads * 5 * key_dim)
        self.q = LinearBN(inputs, heads * key_dim)
        self.mlp = Mlp(outputs)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        k, v = self.split(self.kv(x.flatten(0, 2)), len(x)).split(self.widths, -1)
        q = self.split(self.q(x[:, ::2, ::2].flatten(0, 2)), len(x))
        x = self.attend(q, k, v, x.shape[1:3], step=2)
        return (x + self.drop_path(self.mlp(x))).permute(0, 3, 1, 2)


class LeViT(Backbone):
    """LeViT as a dense backbone, strides 4, 8, 16, 32, 64.

    Args:
        arch: '128s', '128', '192', '256', '384', or a dict of dims and heads (of the three
            stages with attention), depths (of all five, the first two 0), key_dim.
        drop_path_rate: of every block alike. The published one is 0, and 0.1 for '384'.
        merge_last: return the stride-64 map, upsampled, as further channels of the
            stride-32 map: four maps for what takes no fifth.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
    """

    def __init__(self, arch: str | dict = '128s', out_indices: Sequence[int] = (0, 1, 2, 3, 4),
                 drop_path_rate: float = 0., merge_last: bool = False, frozen_stages: int = -1,
                 norm_eval: bool = False, with_cp: bool = False, init_cfg: dict | None = None,
                 **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        if merge_last:
            if 3 not in self.out_indices:
                raise UserError('LeViT: merge_last merges into the map of index 3, which '
                                f'out_indices {self.out_indices} lack')
            self.out_indices = (*(i for i in self.out_indices if i < 4), 4)
        arch = self.settings(arch, overrides)
        if any(arch['depths'][:2]):
            raise UserError('LeViT: the first two stages are a convolution each, without '
                            f'blocks; depths {tuple(arch["depths"])} must start with 0, 0')
        last = self.out_indices[-1]
        self.taps = self.out_indices
        self.depths = arch['depths'][:last + 1]
        key_dim, first = arch['key_dim'], arch['dims'][0]
        dims = (first // 8, first // 4, first // 2, *arch['dims'])
        self.out_channels = tuple(dims[i + 1] for i in self.taps)
        self.merge_last = merge_last
        if merge_last:
            self.out_indices = self.taps[:-1]
            self.out_channels = (*self.out_channels[:-2], sum(self.out_channels[-2:]))
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)

        self.stem = ConvBN(3, dims[0])
        self.layers = nn.ModuleList()
        for stage, depth in enumerate(self.depths):
            inputs, dim = dims[stage:stage + 2]
            wide, side = (-(-224 // (2 ** i)) for i in (stage + 1, stage + 2))
            if stage < 3:
                downsample = ConvBN(inputs, dim, nn.Hardswish if stage < 2 else nn.Identity)
            else:
                downsample = Shrink(inputs, dim, key_dim, wide, drop_path_rate)
            blocks = [Block(dim, arch['heads'][stage - 2], key_dim, side, drop_path_rate)
                      for _ in range(depth)]
            self.layers.append(nn.ModuleDict(dict(downsample=downsample,
                                                  blocks=nn.ModuleList(blocks))))
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        outputs = []
        for i, layer in enumerate(self.layers):
            x = self.run(layer['downsample'], x)
            for block in layer['blocks']:
                x = self.run(block, x)
            if i in self.taps:
                outputs.append(x.contiguous())
        if self.merge_last:
            *outputs, fine, coarse = outputs
            coarse = F.interpolate(coarse, fine.shape[2:], mode='bilinear', align_corners=False)
            outputs.append(torch.cat([fine, coarse], 1))
        return tuple(outputs)

    def layer_id(self, name: str) -> int:
        """What halves a map counts with the block before it, as in Swin."""
        if '.downsample.' in name:
            return sum(self.depths[:self.stage_id(name) - 1])
        return super().layer_id(name)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(_TABLE)}

    @staticmethod
    def convert(state: dict[str, Tensor], net: Backbone) -> dict[str, Tensor]:
        """From the official flat list of blocks, or timm's names, whose ``stages`` are our
        ``layers`` from the third on. 1 x 1 convolutions (levit_c.py, levit_conv) are our
        linear layers; the classifiers go."""
        flat = []
        for stage, depth in enumerate(net.depths):
            if stage > 2:
                flat += [f'layers.{stage}.downsample.', f'layers.{stage}.downsample.mlp.']
            flat += [f'layers.{stage}.blocks.{number}.{part}.'
                     for number in range(depth) for part in ('attn', 'mlp')]
        prefixes = {f'blocks.{i}.': prefix for i, prefix in enumerate(flat)}
        for i, prefix in enumerate(('stem.', *(f'layers.{j}.downsample.' for j in range(3)))):
            prefixes[f'patch_embed.{2 * i}.'] = prefixes[f'stem.conv{i + 1}.'] = prefix
        prefixes |= {f'stages.{i}.': f'layers.{i + 2}.' for i in range(3)}

        converted = {}
        for name, tensor in state.items():
            if name.startswith(('head.', 'head_dist.')) or name.endswith('attention_bias_idxs'):
                continue
            for old, new in _TIMM:
                name = name.replace(old, new)
            if match := re.match(r'(?:patch_embed|blocks|stages)\.\d+\.|stem\.conv\d\.', name):
                inside = name[match.end():].removeprefix('m.').replace('q.1.', 'q.')
                name = prefixes.get(match[0], match[0]) + inside
            converted[name] = tensor.flatten(1) if tensor.shape[2:] == (1, 1) else tensor
        return converted

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        """The suffix -resized-bias says what ours always does."""
        return dict(arch=re.sub('[-_]resized[-_]bias$', '', variant))


ARCHS = {
    '128s': dict(dims=(128, 256, 384), depths=(0, 0, 2, 3, 4), heads=(4, 6, 8), key_dim=16),
    '128': dict(dims=(128, 256, 384), depths=(0, 0, 4, 4, 4), heads=(4, 8, 12), key_dim=16),
    '192': dict(dims=(192, 288, 384), depths=(0, 0, 4, 4, 4), heads=(3, 5, 6), key_dim=32),
    '256': dict(dims=(256, 384, 512), depths=(0, 0, 4, 4, 4), heads=(4, 6, 8), key_dim=32),
    '384': dict(dims=(384, 512, 768), depths=(0, 0, 4, 4, 4), heads=(6, 9, 12), key_dim=32),
}
register(LeViT, ARCHS)
