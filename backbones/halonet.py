"""HaloNet (Vaswani et al., CVPR 2021), arXiv 2103.12731.

A bottleneck network that attends where ResNets have 3 x 3 convolutions, in all blocks
(H0-H7) or in some (timm's hybrids). A map is cut into blocks of queries; a block attends to
itself and a border of ``halo`` pixels around it. What lies outside the map stays in the
softmax as keys and values of zero. Blocks of stride 2 take every other query.

No official code is known; this is timm's network (timm/models/byoanet.py), its names, its
convolutional blocks. Ours: attention (one row of blocks after the other, so that what it
holds stays small; same numbers); any image size, where timm wants multiples of 256 or 224,
for zeros below and right of a map are to its last blocks what the halo's zeros are; maps lie
in channels-last memory; no drop path in blocks without a skip. H0-H7 are configured as in
keras_cv_attention_models, with ReLU and H1's heads as in timm; nothing is known about their
weights. The 1 x 1 convolution in front of some classifiers is left out unless ``final_conv``.
haloregnetz_b's weights want images normalised with mean and deviation 0.5.

variant           parameters  GMACs 224  512   800x1280  ImageNet-1K top-1 (published)
halonet_h0             5.2 M       1.85   9.2      36.6  not found
halonet_h1             7.6 M       2.35  11.8      46.6  not found
halonet_h2             8.8 M       2.60  13.0      51.7  not found
halonet_h3            10.0 M       3.37  16.6      60.1  not found
halonet_h4            15.8 M       4.75  21.5      83.1  not found
halonet_h5            27.6 M       8.09  48.1     168.4  not found
halonet_h6            39.8 M      10.41  51.9     206.3  not found
halonet_h7            61.7 M      16.64  82.1     299.0  84.9 at 600
halonet26t            10.4 M       2.44  12.7      49.6  79.1 at 256
halonet50ts           20.7 M       4.06  21.0      82.4  81.6 at 256
sehalonet33ts         10.4 M       2.63  13.6      53.2  81.0 at 256
eca_halonext26ts       8.7 M       1.86   9.7      37.8  79.5 at 256
haloregnetz_b          9.7 M       1.93  10.2      39.5  81.1

Top-1 from timm's results, of H7 from keras_cv_attention_models. Detection: nothing found.
"""
from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import make_divisible, trunc_normal_
from timm.models.byobnet import (
    BottleneckBlock,
    ByoModelCfg,
    LayerFn,
    SelfAttnBlock,
    create_byob_stem,
    get_layer_fns,
)
from torch import Tensor, nn

from .base import Backbone
from .errors import UserError, closest
from .layers import from_channels_last, pad_to_multiple
from .registry import register

# Width, kind and pooling, as timm calls them.
STEMS = {
    '7x7': (64, '7x7', 'maxpool'),
    '3x3': (32, '3x3', ''),
    'tiered': (64, 'tiered', ''),
    'tiered_pool': (64, 'tiered', 'maxpool'),
}
HALO_SETTINGS = 'block', 'halo', 'dim_head', 'qk_ratio', 'value_ratio'
_BLOCK = re.compile(r'stages\.\d+\.(\d+)\.')


def windows(kv: Tensor, grid: tuple[int, int], block: int, halo: int) -> Iterator[Tensor]:
    """The windows of a map, one row of them after the other.

    On a map with the halo around it a window is a block and the first ``2 * halo`` rows and
    columns of the blocks after it, so views of it are joined and nothing is gathered.

    Args:
        kv: B x H x W x C.
        grid: how many blocks the map has, down and across; zeros fill them up.
        block, halo: sides in pixels; a window has w = block + 2 * halo.

    Yields:
        B x w x blocks across x w x C.
    """
    below, right = (count * block - side for count, side in zip(grid, kv.shape[1:3]))
    after = block - halo
    kv = F.pad(kv, (0, 0, halo, right + after, halo, below + after))
    rows = kv.unflatten(1, (-1, block)).unbind(1)
    for row, next_row in zip(rows, rows[1:]):
        strip = torch.cat([row, next_row[:, :2 * halo]], 1).unflatten(2, (-1, block))
        yield torch.cat([strip[:, :, :-1], strip[:, :, 1:, :2 * halo]], 3)


def offset_logits(q: Tensor, height_rel: Tensor, width_rel: Tensor) -> tuple[Tensor, Tensor]:
    """Products of queries with the vectors of their offsets to the keys of a window.

    Args:
        q: ... x y x x x d, the queries of square blocks.
        height_rel, width_rel: (2w - 1) x d; offset 0, from the block's first pixel to the
            window's first, is at w - 1.

    Returns:
        Two of ... x y * x x w: for the rows of a window, and for its columns.
    """
    side, window = q.shape[-2], len(height_rel) // 2 + 1

    def offsets(table: Tensor) -> Tensor:
        return table.unfold(0, window, 1).flip(0)[:side]

    down = torch.einsum('...yxd,ydk->...yxk', q, offsets(height_rel))
    across = torch.einsum('...yxd,xdk->...yxk', q, offsets(width_rel))
    return down.flatten(-3, -2), across.flatten(-3, -2)


def halo_attention(q: Tensor, kv: Tensor, height_rel: Tensor, width_rel: Tensor, heads: int,
                   block: int, halo: int, step: int = 1) -> Tensor:
    """Blocks of queries attend to the windows around them.

    Args:
        q: B x H/step x W/step x heads * d.
        kv: B x H x W x heads * (d + v), of every head its keys, then its values.
        height_rel, width_rel: see ``offset_logits``.
        heads: of the attention.
        block, halo: see ``windows``.
        step: pixels of kv from one query to the next; divides the block. H / step and
            W / step are multiples of block / step.

    Returns:
        B x H/step x W/step x heads * v.
    """
    batch, side = len(q), block // step
    depth = q.shape[-1] // heads
    q = q.unflatten(3, (heads, depth)).unflatten(2, (-1, side)).unflatten(1, (-1, side))
    rows, columns = q.shape[1], q.shape[3]
    # rows x B * heads x columns x y x x x d
    q = q.permute(1, 0, 5, 3, 2, 4, 6).flatten(1, 2)
    out = []
    # Not the fused attention: where a bias has gradients it is the same steps, and slower.
    for queries, down, across, strip in zip(
            (q * depth ** -0.5).flatten(3, 4), *offset_logits(q, height_rel, width_rel),
            windows(kv, (rows, columns), block, halo)):
        strip = strip.unflatten(-1, (heads, -1)).permute(0, 4, 2, 1, 3, 5)
        strip = strip.flatten(3, 4).flatten(0, 1)
        bias = (down[..., None] + across[..., None, :]).flatten(-2)
        weights = (queries @ strip[..., :depth].mT + bias).softmax(-1)
        out.append(weights @ strip[..., depth:])
    out = torch.stack(out).unflatten(3, (side, side)).unflatten(1, (batch, heads))
    return out.permute(1, 0, 4, 3, 5, 2, 6).flatten(5, 6).flatten(3, 4).flatten(1, 2)


class HaloAttention(nn.Module):
    """Attention of blocks to themselves and a halo. B x C x H x W -> B x values x H' x W'.

    Args:
        dim: channels of the input.
        stride: 1 or 2; sizes round up. Queries are taken 2 pixels apart, but with a block of
            odd side the result is averaged over 2 x 2.
        heads: of the attention.
        block: side of a block, in pixels of the input.
        halo: width of the border, at most half a block.
        dim_head: channels of a query; default a share of ``dim``, see ``qk_ratio``.
        qk_ratio: channels of all queries over ``dim``, rounded to a multiple of 8.
        value_ratio: channels of all values, those of the result, over ``dim``.
    """

    def __init__(self, dim: int, stride: int, heads: int, block: int, halo: int,
                 dim_head: int | None, qk_ratio: float, value_ratio: float):
        super().__init__()
        if 2 * halo > block:
            raise UserError(f'HaloNet: a halo of {halo} is more than half of a block of {block}; '
                            'make the halo smaller or the block larger')
        self.values = int(dim * value_ratio)
        depth = dim_head or make_divisible(dim * qk_ratio) // heads
        self.heads = heads
        self.block = block
        self.halo = halo
        self.stride = stride
        self.step = stride if block % stride == 0 else 1
        self.q = nn.Conv2d(dim, heads * depth, 1, self.step, bias=False)
        self.kv = nn.Conv2d(dim, heads * depth + self.values, 1, bias=False)
        offsets = 2 * (block + 2 * halo) - 1
        self.pos_embed = nn.ParameterDict(dict(height_rel=torch.zeros(offsets, depth),
                                               width_rel=torch.zeros(offsets, depth)))

    def reset_parameters(self) -> None:
        for conv in (self.q, self.kv):
            trunc_normal_(conv.weight, std=conv.in_channels ** -0.5)
        for table in self.pos_embed.values():
            trunc_normal_(table, std=table.shape[1] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        height, width = (-(-side // self.stride) for side in x.shape[2:])
        q, kv = (conv(x).permute(0, 2, 3, 1) for conv in (self.q, self.kv))
        # Zero pixels have zero queries, keys and values: no convolution has a bias.
        unit = math.lcm(self.block, self.stride) // self.step
        out = halo_attention(pad_to_multiple(q, (unit, unit)), kv, **self.pos_embed,
                             heads=self.heads, block=self.block, halo=self.halo, step=self.step)
        out = out.permute(0, 3, 1, 2)
        if self.step < self.stride:
            out = F.avg_pool2d(out, 2)
        return out[:, :, :height, :width]


def _attention(dim: int, stride: int, device: None, dtype: None, **settings) -> HaloAttention:
    """As timm's block calls for it."""
    return HaloAttention(dim, stride, **settings)


class HaloBlock(SelfAttnBlock):
    """timm's attention block, with values of any width. B x C x H x W.

    Args:
        out_chs, layers, options: of timm's block; ``layers.self_attn`` makes the attention.
    """

    def __init__(self, out_chs: int, layers: LayerFn, **options):
        super().__init__(out_chs=out_chs, layers=layers, **options)
        values = self.self_attn.values
        self.post_attn = layers.norm_act(values)
        self.conv3_1x1 = layers.conv_norm_act(values, out_chs, 1, apply_act=False)


class HaloNet(Backbone):
    """HaloNet as a dense backbone, strides 4, 8, 16, 32; raw outputs of the stages.

    Args:
        arch: a key of ``ARCHS``, or a dict of stem (a key of ``STEMS``), act ('relu' or
            'silu'), depths, halo_every (every so many blocks of a stage attend; 0: none), dims
            (of the stages), mids (of their bottlenecks; None: three times what enters a
            block), group (channels of a group of 3 x 3 convolutions; 0: no groups), attn and
            attn_options (channel attention of convolutional blocks, as timm calls it, or
            None), residual (False: a block that changes the shape has no skip, no block a last
            activation), heads (of the stages), block, halo, dim_head, qk_ratio, value_ratio
            (see ``HaloAttention``) and final (width of the final convolution, or None).
        drop_path_rate: of the last block; grows linearly from 0.
        final_conv: pass the last stage through the classifier's 1 x 1 convolution, where the
            arch has one.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
    """

    def __init__(self, arch: str | dict = 'halonet_h0',
                 out_indices: Sequence[int] = (0, 1, 2, 3), drop_path_rate: float = 0.,
                 final_conv: bool = False, frozen_stages: int = -1, norm_eval: bool = False,
                 with_cp: bool = False, init_cfg: dict | None = None, **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        last = self.out_indices[-1]
        self.depths = arch['depths'][:last + 1]
        self.out_channels = tuple(arch['dims'][i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)
        if arch['stem'] not in STEMS:
            raise UserError(f'HaloNet has no stem {arch["stem"]!r}{closest(arch["stem"], STEMS)}')

        layers = get_layer_fns(ByoModelCfg(
            (), act_layer=arch['act'], attn_layer=arch['attn'], attn_kwargs=arch['attn_options']))
        rates = iter(torch.linspace(0, drop_path_rate, sum(arch['depths']), device='cpu').tolist())
        self.stem, features = create_byob_stem(3, *STEMS[arch['stem']], layers=layers)
        inputs, reduction = features[-1]['num_chs'], features[-1]['reduction']
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(self.depths):
            attention = partial(_attention, heads=arch['heads'][stage],
                                **{key: arch[key] for key in HALO_SETTINGS})
            outputs, stride = arch['dims'][stage], 2 if stage else 4 // reduction
            blocks = []
            for number in range(1, depth + 1):
                every = arch['halo_every'][stage]
                block = HaloBlock if every and number % every == 0 else BottleneckBlock
                blocks.append(block(
                    in_chs=inputs, out_chs=outputs, stride=stride,
                    bottle_ratio=arch['mids'][stage] / outputs if arch['mids'] else 3,
                    bottle_in=not arch['mids'], group_size=arch['group'],
                    downsample='conv1x1' if arch['residual'] else '',
                    linear_out=not arch['residual'], drop_path_rate=next(rates),
                    layers=replace(layers, self_attn=attention)))
                if blocks[-1].shortcut is None:
                    blocks[-1].drop_path = nn.Identity()  # it would blank the image
                inputs, stride = outputs, 1
            self.stages.append(nn.Sequential(*blocks))
        self.final_conv = nn.Identity()
        if final_conv and arch['final'] and last == len(arch['depths']) - 1:
            self.final_conv = layers.conv_norm_act(inputs, arch['final'], 1)
            self.out_channels = *self.out_channels[:-1], arch['final']

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[:, 0].numel() / module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for stage in self.stages:
            for block in stage:
                block.init_weights(zero_init_last=True)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        outputs = []
        for i, stage in enumerate(self.stages):
            for block in stage:
                x = self.run(block, x)
            if i in self.out_indices:
                outputs.append(x)
        outputs[-1] = self.final_conv(outputs[-1])
        return tuple(from_channels_last(y) for y in outputs)

    def stage_id(self, name: str) -> int:
        return len(self.depths) + 1 if name.startswith('final_conv') else super().stage_id(name)

    def layer_id(self, name: str) -> int:
        if match := _BLOCK.match(name):
            return sum(self.depths[:self.stage_id(name) - 1]) + int(match[1]) + 1
        return super().layer_id(name)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith('_rel')}

    @staticmethod
    def convert(state: dict[str, Tensor], net: HaloNet) -> dict[str, Tensor]:
        """timm's names are ours. The classifier is dropped, and the convolution in front of
        it where ``net`` has none."""
        dropped = ('head.',) if list(net.final_conv.parameters()) else ('head.', 'final_conv.')
        return {name: tensor for name, tensor in state.items() if not name.startswith(dropped)}

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        """The cases tap what timm returns: the last stage behind the final convolution."""
        return dict(arch=variant.removesuffix('-padded'), final_conv=True)


def _paper(block: int, halo: int, values: float, width: float, third: int,
           final: int | None = None, heads: Sequence[int] = (4, 8, 8, 8)) -> dict:
    """H0-H7 by the columns of the paper's table: b, h, r_v, r_b, l_3, d_f."""
    mids = 64, 128, 256, 512
    return dict(
        stem='7x7', act='relu', depths=(3, 3, third, 3), halo_every=(1, 1, 1, 1),
        dims=tuple(int(mid * width) for mid in mids), mids=mids, group=0, attn=None,
        attn_options={}, residual=True, heads=heads, block=block, halo=halo, dim_head=None,
        qk_ratio=1, value_ratio=values, final=final)


_HYBRID = dict(
    stem='tiered_pool', act='silu', dims=(256, 512, 1024, 2048), mids=(64, 128, 256, 512), group=0,
    attn=None, attn_options={}, residual=True, heads=(8, 8, 8, 8), block=8, halo=3, dim_head=None,
    qk_ratio=1, value_ratio=1, final=None)
ARCHS = dict(
    halonet_h0=_paper(8, 3, 1, 0.5, 7),
    halonet_h1=_paper(8, 3, 1, 1, 10, heads=(8, 8, 8, 8)),
    halonet_h2=_paper(8, 3, 1, 1.25, 11),
    halonet_h3=_paper(10, 3, 1, 1.5, 12, 1024),
    halonet_h4=_paper(12, 2, 1, 3, 12, 1280),
    halonet_h5=_paper(14, 2, 2.5, 2, 23, 1536),
    halonet_h6=_paper(8, 4, 3, 2.75, 24, 1536),
    halonet_h7=_paper(10, 3, 4, 3.5, 26, 2048),
    halonet26t=dict(_HYBRID, act='relu', depths=(2, 2, 2, 2), halo_every=(0, 0, 2, 1), halo=2),
    halonet50ts=dict(_HYBRID, depths=(3, 4, 6, 3), halo_every=(0, 4, 2, 2), heads=(8, 4, 8, 8)),
    sehalonet33ts=dict(
        _HYBRID, stem='tiered', depths=(2, 3, 3, 2), halo_every=(0, 3, 3, 1),
        dims=(256, 512, 1024, 1536), attn='se', final=1280),
    eca_halonext26ts=dict(
        _HYBRID, depths=(2, 2, 2, 2), halo_every=(0, 0, 2, 1), halo=2, dim_head=16, group=16,
        attn='eca'),
    haloregnetz_b=dict(
        _HYBRID, stem='3x3', depths=(2, 6, 12, 2), halo_every=(0, 0, 4, 1),
        dims=(48, 96, 192, 288), mids=None, group=16, attn='se', attn_options=dict(rd_ratio=0.25),
        residual=False, block=7, halo=2, qk_ratio=0.33, final=1536),
)
register(HaloNet, ARCHS)
