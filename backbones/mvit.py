"""MViT (Fan et al., ICCV 2021), arXiv 2104.11227, and MViTv2 (Li et al., CVPR 2022), arXiv
2112.01526.

Queries, keys and values are pooled by strided depthwise convolutions before they meet. MViT
has a class token, an absolute position table, and widens in the MLP that ends a stage, hence
wider maps. MViTv2 has relative positions, one table per axis, adds the pooled queries to what
attention returns, and widens in the attention that begins a stage.

Official code: facebookresearch/SlowFast (MViT), facebookresearch/mvit and detectron2 (MViTv2);
same names and numbers. MViTv2 is detectron2's network for detection: windows of 56, 28, 14, 7
whose zero padding takes part unmasked; global attention, in stages 2 and 3 to keys of twice
the stride, where a stage ends; a LayerNorm on every output. ``windows=False, out_norm=False``
is the classifier. For MViT nothing dense was published: ours is its image model, class token
and all, for any size, with a LayerNorm on every output. ``windows=True, cls_token=False``
gives it MViTv2's windows, an experiment.

variant             parameters  GMACs 224    512  800x1280  ImageNet-1K top-1 (published)
mvitv2_tiny             23.4 M       4.61   26.9     106.7  82.3
mvitv2_small            34.1 M       6.89   39.6     153.9  83.6
mvitv2_base             50.7 M      10.03   57.3     219.3  84.4
mvitv2_large           212.5 M      41.65  229.7     876.4  87.5 (ImageNet-21K)
mvitv2_large_in1k      216.8 M      43.60  239.9     916.2  85.3; widens in the MLP
mvitv2_huge            665.3 M     119.45  648.8    2481.1  88.0 (ImageNet-21K)
mvitv1_tiny             25.6 M       5.53   43.5     376.8  not found; inferred blocks
mvit_b_16_conv          36.2 M       7.81   59.3     493.2  83.0
mvit_b_16_max           36.2 M       7.78   59.1     492.6  82.5; 3 x 3 maxima without norms: ours
mvit_b_24_conv          52.8 M      10.94   82.8     686.7  83.4; inferred blocks
mvit_b_24_wide_320      72.1 M      14.64  106.4     839.4  84.8 at 320; inferred blocks

Published with tiny, small, base of MViTv2 (paper, 3x): Mask R-CNN 48.2, 49.9, 51.0 box, 43.8,
45.1, 45.7 mask AP; Cascade Mask R-CNN 52.2, 53.2, 54.1 box, 45.0, 46.0, 46.8 mask AP.

Relative positions enter as an additive bias, a number per head, query and key: fused attention
does without the logits, not without the bias. At 800 x 1344 mvitv2_tiny holds at most 0.5 GiB,
3.0 GiB in training, 1.0 GiB with ``with_cp`` (one image, float32, CPU); without windows 4.4
GiB already in inference. MViT has no bias: 0.4 GiB.
"""
from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn

from .base import Backbone
from .errors import UserError, closest
from .layers import pad_to_multiple, resize_table, window_partition, window_reverse
from .registry import register

_BLOCK = re.compile(r'blocks\.(\d+)\.')
_TIMM_BLOCK = re.compile(r'^stages\.(\d+)\.blocks\.(\d+)\.')
_NAMES = {
    r'^bottom_up\.': '',  # detectron2's detectors
    r'\.shortcut_proj_(attn|mlp)\.': '.proj.',  # timm
    r'^patch_embed\.projection\.': 'patch_embed.proj.',  # mmpretrain
    r'^norm(\d)\.': lambda match: f'scale{int(match[1]) + 2}_norm.',
}
_POSITIONS = ('cls_token', 'pos_embed', 'rel_pos_h', 'rel_pos_w')


def shrunk(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """H, W of a map after a pooling: rounded up."""
    return -(-size[0] // stride), -(-size[1] // stride)


def resize_rows(table: Tensor, length: int) -> Tensor:
    """Resample a table over relative positions, length x C, linearly."""
    return resize_table(table[:, None], (length, 1), 'bilinear')[:, 0]


def resize_positions(table: Tensor, tokens: int, size: tuple[int, int]) -> Tensor:
    """Resample the square part of an absolute position table.

    Args:
        table: 1 x (tokens + side * side) x C.
        size: H, W of the map.

    Returns:
        1 x (tokens + H * W) x C.
    """
    side = math.isqrt(table.shape[1] - tokens)
    grid = resize_table(table[0, tokens:].unflatten(0, (side, side)), size, 'bilinear')
    return torch.cat([table[:, :tokens], grid.flatten(0, 1)[None]], 1)


def relative_rows(table: Tensor, queries: int, keys: int) -> Tensor:
    """The vector that stands for each distance between queries and keys of one axis.

    Args:
        table: distances x C; resampled where it was made for another number of positions.
        queries, keys: how many lie along the axis; the fewer, the further apart.

    Returns:
        queries x keys x C.
    """
    table = resize_rows(table, 2 * max(queries, keys) - 1)
    query_step, key_step = max(keys / queries, 1.), max(queries / keys, 1.)
    # In float32 and in this order: what is truncated may lie within a rounding of an integer.
    position = torch.arange(queries, device=table.device)[:, None] * query_step
    position = position - torch.arange(keys, device=table.device) * key_step
    return table[(position + (keys - 1) * key_step).long()]


class HeadPool(nn.Conv2d):
    """Depthwise 3 x 3 convolution, the same one for every head. B x heads * C x H x W."""

    def __init__(self, head_dim: int, stride: int):
        super().__init__(head_dim, head_dim, 3, stride, padding=1, groups=head_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # One convolution of all channels reads tokens as they lie; folding heads into the
        # batch would copy them.
        channels = x.shape[1]
        weight = self.weight.repeat(channels // self.groups, 1, 1, 1)
        return F.conv2d(x, weight, None, self.stride, self.padding, groups=channels)


class PoolingAttention(nn.Module):
    """Attention of pooled queries to pooled keys and values, over the map or in windows.

    B x (tokens + H * W) x inputs -> B x (tokens + H/stride * W/stride) x dim. Windows are cut
    after pooling, from maps padded with zeros to whole windows. Padded keys are not masked.

    Args:
        inputs, dim, heads: channels that come in, channels and heads of the attention.
        strides: of the pooling of queries; of keys and values.
        tokens: how many tokens precede those of the map; no convolution sees them.
        side: of the map in images of the tables' size, and of the windows.
        windows: attend inside windows, not over the map.
        relative: MViTv2's attention. Queries are pooled at stride 1, too, and added to what
            comes out; relative positions, one table per axis.
        pool: 'conv' (and a norm) or 'max'.
    """

    def __init__(self, inputs: int, dim: int, heads: int, strides: tuple[int, int], tokens: int,
                 side: int, windows: bool, relative: bool, pool: str):
        super().__init__()
        head_dim = dim // heads
        self.heads = heads
        self.strides = strides
        self.tokens = tokens
        self.window = side if windows else None
        self.relative = relative
        self.qkv = nn.Linear(inputs, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        for name, stride in zip('qkv', (strides[0], strides[1], strides[1])):
            pooled = name != 'q' or stride > 1 or relative
            conv = pooled and pool == 'conv'
            self.add_module(f'pool_{name}', HeadPool(head_dim, stride) if conv else
                            nn.MaxPool2d(3, stride, padding=1) if pooled else nn.Identity())
            self.add_module(f'norm_{name}',
                            nn.LayerNorm(head_dim, eps=1e-6) if conv else nn.Identity())
        if relative:
            length = 2 * max(side // stride for stride in strides) - 1
            self.rel_pos_h = nn.Parameter(torch.zeros(length, head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(length, head_dim))

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        q, k, v = (self.pooled(name, t, size) for name, t in zip('qkv', self.qkv(x).chunk(3, -1)))
        sizes = [shrunk(size, stride) for stride in self.strides]
        if self.window is None:
            out = self.attend(q, k, v, *sizes)
        else:
            out = self.attend_in_windows(q, k, v, *sizes)
        if self.relative:
            residual = q[:, self.tokens:]
            out = out + (F.pad(residual, (0, 0, self.tokens, 0)) if self.tokens else residual)
        return self.proj(out)

    def pooled(self, name: str, t: Tensor, size: tuple[int, int]) -> Tensor:
        """Pool the map among tokens of queries ('q'), keys or values, B x tokens x C, and
        normalise every head."""
        pool, norm = self.get_submodule(f'pool_{name}'), self.get_submodule(f'norm_{name}')
        tokens, x = t[:, :self.tokens], t[:, self.tokens:]
        x = pool(x.unflatten(1, size).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)
        t = torch.cat([tokens, x], 1) if self.tokens else x
        return norm(t.unflatten(-1, (self.heads, -1))).flatten(2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, q_size: tuple[int, int],
               k_size: tuple[int, int]) -> Tensor:
        """Attention without the output projection. B x tokens x C; sizes are H, W of maps."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        bias = self.bias(q, q_size, k_size) if self.relative else None
        return F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2)

    def bias(self, q: Tensor, q_size: tuple[int, int], k_size: tuple[int, int]) -> Tensor:
        """What relative positions add to the logits of every query, B x heads x tokens x C,
        and key: its products with a vector per row and a vector per column of keys."""
        rows = relative_rows(self.rel_pos_h, q_size[0], k_size[0])
        columns = relative_rows(self.rel_pos_w, q_size[1], k_size[1])
        q = q[:, :, self.tokens:].unflatten(2, q_size)
        vertical = torch.einsum('bnyxc,ykc->bnyxk', q, rows)
        horizontal = torch.einsum('bnyxc,xkc->bnyxk', q, columns)
        bias = (vertical[..., None] + horizontal[..., None, :]).flatten(4).flatten(2, 3)
        return F.pad(bias, (self.tokens, 0, self.tokens, 0)) if self.tokens else bias

    def attend_in_windows(self, q: Tensor, k: Tensor, v: Tensor, q_size: tuple[int, int],
                          k_size: tuple[int, int]) -> Tensor:
        """``attend`` inside every window."""
        q_window, k_window = ((self.window // stride,) * 2 for stride in self.strides)
        q = pad_to_multiple(q.unflatten(1, q_size), q_window)
        k, v = (pad_to_multiple(t.unflatten(1, k_size), k_window) for t in (k, v))
        out = self.attend(window_partition(q, q_window), window_partition(k, k_window),
                          window_partition(v, k_window), q_window, k_window)
        out = window_reverse(out, q_window, q.shape[1:3])
        return out[:, :q_size[0], :q_size[1]].flatten(1, 2)


class Block(nn.Module):
    """Pooling attention and MLP, each behind a norm and with a skip. B x tokens x C.

    Whichever of the two changes the number of channels has a projection of its *normed* input
    on its skip.

    Args:
        widths: channels that come in, of the attention, that go out.
        drop_path: of both.
        attention: further arguments of ``PoolingAttention``.
    """

    def __init__(self, widths: tuple[int, int, int], drop_path: float, **attention):
        super().__init__()
        inputs, dim, outputs = widths
        self.norm1 = nn.LayerNorm(inputs, eps=1e-6)
        self.attn = PoolingAttention(inputs, dim, **attention)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim, outputs)
        if inputs != outputs:
            self.proj = nn.Linear(inputs, outputs)
        self.attn_widens, self.mlp_widens = inputs != dim, dim != outputs
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        n = self.norm1(x)
        skip = self.pooled(self.proj(n) if self.attn_widens else x, size)
        x = skip + self.drop_path(self.attn(n, size))
        n = self.norm2(x)
        skip = self.proj(n) if self.mlp_widens else x
        return skip + self.drop_path(self.mlp(n))

    def pooled(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The skip of a block that makes the map smaller: maxima."""
        stride, tokens = self.attn.strides[0], self.attn.tokens
        if stride == 1:
            return x
        image = x[:, tokens:].unflatten(1, size).permute(0, 3, 1, 2)
        image = F.max_pool2d(image, stride + 1, stride, (stride + 1) // 2)
        image = image.permute(0, 2, 3, 1).flatten(1, 2)
        return torch.cat([x[:, :tokens], image], 1) if tokens else image


class PatchEmbed(nn.Module):
    """Image to a map of stride 4, rounded up: B x 3 x H x W -> B x H/4 x W/4 x C."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 7, 4, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


class MViT(Backbone):
    """MViT and MViTv2 as dense backbones, strides 4, 8, 16, 32.

    Args:
        arch: a key of ``ARCHS``, or a dict of
            dim, heads: of the first stage; both double at each transition.
            depths: blocks per stage.
            relative: MViTv2's attention and relative positions, or MViT's with an absolute
                table.
            widen: 'attn', channels double in the attention of a stage's first block, or
                'mlp', in the MLP of its last one: that stage's map is then wider.
            pool: queries, keys and values by 'conv' or 'max'.
            cls_token: a class token takes part in every attention. Not with windows.
            windows: detectron2's hybrid of windows and a global last block in stages 2 to 4.
            img_size: side of the images that the position tables and the windows fit.
        drop_path_rate: of the last block; grows linearly from 0.
        out_norm: LayerNorm on every output.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
    """

    added = ('scale',)

    def __init__(self, arch: str | dict = 'mvitv2_tiny', out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.1, out_norm: bool = True, frozen_stages: int = -1,
                 norm_eval: bool = False, with_cp: bool = False, init_cfg: dict | None = None,
                 **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        _check(arch)
        last = self.out_indices[-1]
        self.depths = arch['depths'][:last + 1]
        dims = [arch['dim'] * 2 ** stage for stage in range(len(arch['depths']))]
        wider = dims if arch['widen'] == 'attn' else [*dims[1:], dims[-1]]
        self.out_channels = tuple(wider[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)
        self.tokens = int(arch['cls_token'])

        rates = iter(torch.linspace(0, drop_path_rate, sum(arch['depths']), device='cpu').tolist())
        self.patch_embed = PatchEmbed(dims[0])
        if arch['cls_token']:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dims[0]))
        if not arch['relative']:
            positions = self.tokens + (arch['img_size'] // 4) ** 2
            self.pos_embed = nn.Parameter(torch.zeros(1, positions, dims[0]))
        self.blocks = nn.ModuleList()
        inputs = dims[0]
        for stage, (dim, depth) in enumerate(zip(dims, self.depths)):
            for number in range(depth):
                outputs = wider[stage] if number == depth - 1 else dim
                self.blocks.append(Block((inputs, dim, outputs), next(rates), **_attention(
                    arch, stage, number == 0, number == depth - 1)))
                inputs = outputs
        for i, dim in zip(self.out_indices, self.out_channels):
            self.add_module(f'scale{i + 2}_norm',
                            nn.LayerNorm(dim, eps=1e-6) if out_norm else nn.Identity())

        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith(_POSITIONS):
                trunc_normal_(parameter, std=0.02)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.patch_embed(x)
        size = x.shape[1:3]
        x = x.flatten(1, 2)
        if self.tokens:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        if hasattr(self, 'pos_embed'):
            x = x + resize_positions(self.pos_embed, self.tokens, size)
        outputs = []
        blocks = iter(self.blocks)
        for i, depth in enumerate(self.depths):
            for _ in range(depth):
                block = next(blocks)
                x = self.run(block, x, size)
                size = shrunk(size, block.attn.strides[0])
            if i in self.out_indices:
                norm = self.get_submodule(f'scale{i + 2}_norm')
                y = norm(x[:, self.tokens:]).unflatten(1, size)
                outputs.append(y.permute(0, 3, 1, 2).contiguous())
        return tuple(outputs)

    def stage_id(self, name: str) -> int:
        if match := _BLOCK.match(name):
            return 1 + sum(int(match[1]) >= end for end in accumulate(self.depths))
        return len(self.depths) + 1 if name.startswith(('blocks.', 'scale')) else 0

    def layer_id(self, name: str) -> int:
        if match := _BLOCK.match(name):
            return int(match[1]) + 1
        return self.num_layers + 1 if self.stage_id(name) else 0

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(_POSITIONS)}

    @staticmethod
    def convert(state: dict[str, Tensor], net: MViT) -> dict[str, Tensor]:
        """Names of PySlowFast, facebookresearch/mvit and detectron2 are ours; timm's count
        blocks by stage. Pooling weights lose the time axis of video networks, tables are
        resampled if ``net`` has others. The final norm goes with the classifier, and the class
        token of pretraining where ``net`` has none."""
        starts = [0, *accumulate(net.depths)]
        own = net.state_dict()
        converted = {}
        for name, tensor in state.items():
            for pattern, new in _NAMES.items():
                name = re.sub(pattern, new, name)
            if match := _TIMM_BLOCK.match(name):
                stage, number = map(int, match.groups())
                start = starts[min(stage, len(net.depths))]
                name = f'blocks.{start + number}.{name[match.end():]}'
            if name.startswith(('norm.', 'head.')) or (name == 'cls_token' and name not in own):
                continue
            if tensor.ndim == 5:
                tensor = tensor.squeeze(2)
            elif name == 'pos_embed' and name in own:
                tokens = tensor.shape[1] - math.isqrt(tensor.shape[1]) ** 2
                side = math.isqrt(own[name].shape[1] - net.tokens)
                tensor = resize_positions(tensor, tokens, (side, side))[:, tokens - net.tokens:]
            elif name.endswith(('rel_pos_h', 'rel_pos_w')) and name in own:
                tensor = resize_rows(tensor, len(own[name]))
            converted[name] = tensor
        return converted

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        """Cases of MViTv2 are of detectron2's network, but '-cls' of the classifier's: no
        windows, raw maps, as all of MViT. Their tables are those of the pretraining."""
        arch = variant.removesuffix('-cls')
        detection = arch == variant and arch.startswith('mvitv2')
        if not detection and f'{arch}_in1k' in cls.archs:
            arch = f'{arch}_in1k'
        return dict(arch=arch, windows=detection, out_norm=detection)


def _check(arch: dict) -> None:
    """Settings that exist and go together."""
    for key, known in (('widen', ('attn', 'mlp')), ('pool', ('conv', 'max'))):
        if arch[key] not in known:
            raise UserError(f'MViT has no {key} {arch[key]!r}{closest(arch[key], known)}')
    if arch['windows'] and arch['cls_token']:
        raise UserError('MViT: a class token belongs to no window; pass cls_token=False with '
                        'windows=True')
    if arch['img_size'] < 32 or arch['img_size'] % 32:
        raise UserError(f'MViT: img_size must be a multiple of 32, got {arch["img_size"]}')


def _attention(arch: dict, stage: int, first: bool, last: bool) -> dict:
    """How a stage's first, last or other block attends: arguments of ``PoolingAttention``."""
    transition = stage > 0 and first
    # As in detectron2: the block that closes a stage sees the whole map, through coarser keys
    # where they would be many.
    whole = stage > 0 and last
    stride_kv = max(4 // 2 ** stage, 1) * (2 if arch['windows'] and whole and stage < 3 else 1)
    return dict(heads=arch['heads'] * 2 ** stage, strides=(2 if transition else 1, stride_kv),
                tokens=int(arch['cls_token']),
                side=arch['img_size'] // 4 // 2 ** (stage - transition),
                windows=arch['windows'] and not whole, relative=arch['relative'],
                pool=arch['pool'])


_V1 = dict(dim=96, heads=1, relative=False, widen='mlp', pool='conv', cls_token=True,
           windows=False, img_size=224)
_V2 = dict(dim=96, heads=1, relative=True, widen='attn', pool='conv', cls_token=False,
           windows=True, img_size=224)
ARCHS = dict(
    mvitv2_tiny=dict(_V2, depths=(1, 2, 5, 2)),
    mvitv2_small=dict(_V2, depths=(1, 2, 11, 2)),
    mvitv2_base=dict(_V2, depths=(2, 3, 16, 3)),
    mvitv2_large=dict(_V2, depths=(2, 6, 36, 4), dim=144, heads=2),
    mvitv2_large_in1k=dict(_V2, depths=(2, 6, 36, 4), dim=144, heads=2, widen='mlp'),
    mvitv2_huge=dict(_V2, depths=(4, 8, 60, 8), dim=192, heads=3),
    mvitv1_tiny=dict(_V1, depths=(1, 2, 5, 2)),
    mvit_b_16_conv=dict(_V1, depths=(1, 2, 11, 2)),
    mvit_b_16_max=dict(_V1, depths=(1, 2, 11, 2), pool='max'),
    mvit_b_24_conv=dict(_V1, depths=(2, 3, 16, 3)),
    mvit_b_24_wide_320=dict(_V1, depths=(2, 3, 16, 3), dim=112, img_size=320),
)
register(MViT, ARCHS)
