"""QnA-ViT (Arar et al., CVPR 2022), arXiv 2112.11435: "Learned Queries for Efficient Local
Attention".

Query-and-attend: overlapping windows share a few *learned* queries. A pixel hence has one
score for all windows that it lies in, and the softmax over a window is a quotient of two
depthwise convolutions over exponentials: no window is ever copied out. The last two stages
begin with plain attention in windows of 14 and 7, not shifted (global at 224 pixels).

Official code: moabarar/qna (JAX; classification only, sizes that are multiples of 224).
Ours: any size, where maps are padded to whole windows and what was padded is masked; a
LayerNorm on every output (``out_norm``, as in Swin's detection code); scores, exponentials
and quotients in float32 also under autocast. Like there no maximum is subtracted before the
exponential: one per map would halve the range of scores that float32 can hold. The queries
are normalised, so scores stay far from its end at 88.

variant   parameters  GMACs 224  512   800x1280  ImageNet-1K top-1 (published)
tiny          15.2 M       2.43  16.5      53.1  81.7
tiny_7x7      15.2 M       2.51  16.9      54.9  82.0
small         24.5 M       4.35  31.8      97.3  83.2
base          54.9 M       9.51  69.4     212.8  83.9

Top-1 from the official README. Detection, segmentation: nothing published.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, lecun_normal_, trunc_normal_, trunc_normal_tf_
from torch import Tensor, nn

from .base import Backbone
from .layers import pad_to_multiple, relative_position_bias, window_partition, window_reverse
from .registry import register

HIDDEN = -1e4  # as a logit: a key without weight, in half precision too
# Flax paths, whose tensors are laid out ... x inputs x outputs.
_BLOCK = re.compile(r'(LSA|QnA)Stage_(\d)\.\w+?_Block_(\d+)(_stride_2)?\.')
_NAMES = {
    'StemBlock_0.conv_1x1.': 'patch_embed.proj.',
    'ClassificationHead_0.LayerNorm_0.': 'norm3.',
    'LayerNorm_0.': 'norm1.',
    'LayerNorm_1.': 'norm2.',
    'FusedKQnA_0.Wk': 'attn.to_k.kernel',
    'FusedKQnA_0.': 'attn.',
    'MultiHeadSelfAttention_0.': 'attn.',
    'RelativePositionalEmbedding_0.': '',
    'MlpBlock_0.Dense_0.': 'mlp.fc1.',
    'MlpBlock_0.Dense_1.': 'mlp.fc2.',
    'Conv_0.': 'skip.',
}


def query_and_attend(scores: Tensor, values: Tensor, bias: Tensor, scale: Tensor,
                     stride: int) -> Tensor:
    """Every shared query attends to the k x k window around every position; the sum of what
    the queries find. Positions outside the map are masked.

    Args:
        scores: B x Q x n x H x W, of Q queries in n heads.
        values: B x n x d x H x W.
        bias: k * k x Q * n, added to the scores of a window, row by row.
        scale: k * k x Q * n; what the softmax over a window is multiplied by.
        stride: step between windows.

    Returns:
        B x n * d x H' x W', sizes divided by the stride and rounded up.
    """
    queries, heads = scores.shape[1:3]
    depth = values.shape[2]
    side = round(len(bias) ** 0.5)
    bias = bias.exp()

    def sum_over_windows(maps: Tensor, weights: Tensor) -> Tensor:
        kernels = weights.T.reshape(-1, 1, side, side)
        maps = maps.flatten(1, -3)
        kernels = kernels.repeat_interleave(maps.shape[1] // len(kernels), 0)
        return F.conv2d(maps, kernels, None, stride, side // 2, groups=len(kernels))

    share = scores.exp()
    total = sum_over_windows(share, bias).unflatten(1, (queries, heads, 1))
    found = sum_over_windows(share[:, :, :, None] * values[:, None], bias * scale)
    found = found.unflatten(1, (queries, heads, depth))
    return (found / total).sum(1).flatten(1, 2)


def row_major(x: Tensor, groups: int) -> Tensor:
    """B x H x W x C -> B x groups x C / groups x H x W, laid out for convolutions."""
    return x.permute(0, 3, 1, 2).contiguous().unflatten(1, (groups, -1))


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Where there is autocast, none; the meta device has none to switch off."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


class QueryAndAttend(nn.Module):
    """Attention of learned queries to overlapping windows, a QnA layer.

    Args:
        dim: channels of the input, B x H x W x dim.
        outputs: channels of the result, B x H' x W' x outputs.
        head_dim: channels of a head.
        queries: how many there are; all heads of all windows share them.
        kernel: side of a window, odd.
        stride: step between windows; sizes round up.
    """

    def __init__(self, dim: int, outputs: int, head_dim: int, queries: int, kernel: int,
                 stride: int = 1):
        super().__init__()
        self.heads = outputs // head_dim
        self.stride = stride
        self.query = nn.Parameter(torch.zeros(queries, outputs))
        self.to_k = nn.Linear(dim, outputs, bias=False)
        self.to_v = nn.Linear(dim, outputs, bias=False)
        self.to_out = nn.Linear(outputs, outputs, bias=False)
        self.rpe_bias = nn.Parameter(torch.zeros(kernel ** 2, queries * self.heads))
        self.attn_scale_weights = nn.Parameter(torch.zeros(kernel ** 2, queries * self.heads))

    def forward(self, x: Tensor) -> Tensor:
        values = self.to_v(x)
        with without_autocast(x.device):
            found = query_and_attend(self.scores(x.float()), row_major(values.float(), self.heads),
                                     self.rpe_bias.float(), self.attn_scale_weights.float(),
                                     self.stride)
        return self.to_out(found.to(values.dtype).permute(0, 2, 3, 1))

    def scores(self, x: Tensor) -> Tensor:
        """B x queries x heads x H x W. Keys are never computed: their matrix times a query is
        one vector, and its product with a pixel the score."""
        query = self.query.float().unflatten(1, (self.heads, -1))
        query = query / (query.norm(dim=-1, keepdim=True) + 1e-6) * query.shape[-1] ** -0.5
        to_k = self.to_k.weight.float().unflatten(0, (self.heads, -1))
        to_score = torch.einsum('qnd,ndc->qnc', query, to_k)
        return row_major(F.linear(x, to_score.flatten(0, 1)), len(query))

    def elementwise_macs(self, x: Tensor) -> int:
        """Products of a query's exponentials with the values, see ``suite.complexity``."""
        return x[..., 0].numel() * self.query.numel()


class WindowAttention(nn.Module):
    """Multi-head attention among the tokens of a window. N x tokens x C."""

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.rpe_bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        side = round(len(self.rpe_bias) ** 0.5)
        bias = relative_position_bias(self.rpe_bias.unflatten(0, (side, side)))
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(len(x) // len(mask), 1, 1, 1)
        # Channels are ordered by head first: [q | k | v] of each.
        q, k, v = self.to_qkv(x).unflatten(-1, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype))
        return self.to_out(out.transpose(1, 2).flatten(2))


def padding_mask(height: int, width: int, window: int, device: torch.device) -> Tensor | None:
    """What hides padded keys: windows x 1 x tokens, or None where nothing is padded."""
    if height % window == width % window == 0:
        return None
    inside = pad_to_multiple(torch.ones(1, height, width, 1, device=device), (window, window))
    return (1 - window_partition(inside, (window, window))).mT * HIDDEN


class Block(nn.Module):
    """Attention and MLP, each behind a norm and with a skip. Channels last."""

    def __init__(self, dim: int, outputs: int, attn: nn.Module, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = attn
        self.norm2 = nn.LayerNorm(outputs, eps=1e-6)
        self.mlp = Mlp(outputs, 4 * outputs, act_layer=partial(nn.GELU, approximate='tanh'))
        self.drop_path = DropPath(drop_path)

    def mix(self, x: Tensor, *mask: Tensor | None) -> Tensor:
        return x + self.drop_path(self.attn(self.norm1(x), *mask))

    def forward(self, x: Tensor, *mask: Tensor | None) -> Tensor:
        x = self.mix(x, *mask)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Downsample(Block):
    """A block that halves the map, rounding up. Its attention is never dropped."""

    def __init__(self, dim: int, outputs: int, attn: nn.Module, drop_path: float):
        super().__init__(dim, outputs, attn, drop_path)
        self.skip = nn.Linear(dim, outputs, bias=False)

    def mix(self, x: Tensor) -> Tensor:
        return self.skip(x[:, ::2, ::2]) + self.attn(self.norm1(x))


class PatchEmbed(nn.Module):
    """Image to tokens of 4 x 4 pixels: B x 3 x H x W -> B x H/4 x W/4 x C, rounded up."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        below, right = -x.shape[2] % 4, -x.shape[3] % 4
        return self.proj(F.pad(x, (0, right, 0, below))).permute(0, 2, 3, 1).contiguous()


class QnA(Backbone):
    """QnA-ViT as a dense backbone, strides 4, 8, 16, 32.

    Args:
        arch: 'tiny', 'tiny_7x7', 'small', 'base', or a dict of dim, depths, local (how many
            blocks of a stage, the first ones, attend in windows), windows (their sides),
            local_head_dim, head_dim, queries, kernel (see ``QueryAndAttend``).
        drop_path_rate: of the last block; grows linearly from 0.
        out_norm: LayerNorm on every output, ours; the last one takes the weights of the
            classifier's.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
    """

    added = ('norm',)

    def __init__(self, arch: str | dict = 'tiny', out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.1, out_norm: bool = True, frozen_stages: int = -1,
                 norm_eval: bool = False, with_cp: bool = False,
                 init_cfg: dict | None = None, **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        last = self.out_indices[-1]
        self.depths = arch['depths'][:last + 1]
        self.local, self.windows = arch['local'], arch['windows']
        dims = [arch['dim'] * 2 ** stage for stage in range(last + 1)]
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)

        layer = partial(QueryAndAttend, head_dim=arch['head_dim'], queries=arch['queries'],
                        kernel=arch['kernel'])
        steps = sum(arch['depths']) + len(arch['depths']) - 1
        rates = iter(torch.linspace(0, drop_path_rate, steps, device='cpu').tolist())
        self.patch_embed = PatchEmbed(arch['dim'])
        self.stages = nn.ModuleList()
        for stage, (dim, depth) in enumerate(zip(dims, self.depths)):
            blocks = nn.ModuleList()
            for number in range(depth):
                attn = (WindowAttention(dim, dim // arch['local_head_dim'], self.windows[stage])
                        if number < self.local[stage] else layer(dim, dim))
                blocks.append(Block(dim, dim, attn, next(rates)))
            self.stages.append(nn.ModuleDict(dict(blocks=blocks)))
            if stage < last:
                self.stages[stage]['downsample'] = Downsample(
                    dim, 2 * dim, layer(dim, 2 * dim, stride=2), next(rates))
        for i, dim in zip(self.out_indices, self.out_channels):
            self.add_module(f'norm{i}', nn.LayerNorm(dim, eps=1e-6) if out_norm else nn.Identity())

        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                lecun_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, QueryAndAttend):
                trunc_normal_tf_(module.query, std=arch['head_dim'] ** -0.5)
                nn.init.normal_(module.attn_scale_weights, std=0.02)
            elif isinstance(module, WindowAttention):
                trunc_normal_(module.rpe_bias, std=0.02)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.patch_embed(x)
        outputs = []
        for i, stage in enumerate(self.stages):
            local = self.local[i]
            if local:
                x = self.in_windows(stage['blocks'][:local], x, self.windows[i])
            for block in stage['blocks'][local:]:
                x = self.run(block, x)
            if i in self.out_indices:
                norm = self.get_submodule(f'norm{i}')
                outputs.append(norm(x).permute(0, 3, 1, 2).contiguous())
            if 'downsample' in stage:
                x = self.run(stage['downsample'], x)
        return tuple(outputs)

    def in_windows(self, blocks: nn.ModuleList, x: Tensor, side: int) -> Tensor:
        """A map is cut once for several blocks: all of them work per window."""
        height, width = x.shape[1:3]
        mask = padding_mask(height, width, side, x.device)
        x = pad_to_multiple(x, (side, side))
        padded = x.shape[1:3]
        x = window_partition(x, (side, side))
        for block in blocks:
            x = self.run(block, x, mask)
        return window_reverse(x, (side, side), padded)[:, :height, :width].contiguous()

    def no_weight_decay(self) -> set[str]:
        """The authors' names, and the queries, whose length does not matter."""
        leaves = 'rpe_bias', 'attn_scale_weights', 'query'
        return {name for name, _ in self.named_parameters() if name.endswith(leaves)}

    @staticmethod
    def convert(state: dict[str, Tensor], net: QnA) -> dict[str, Tensor]:
        """Flax names joined by dots, and Flax's layouts. The classifier's norm is our last
        output's.

        The official files are Flax's own; with Flax at hand this makes a checkpoint of one::

            params = flax.serialization.msgpack_restore(open(path, 'rb').read())['params']
            params = flax.traverse_util.flatten_dict(params, sep='.')
            torch.save({name: torch.tensor(value) for name, value in params.items()}, 'qna.pth')
        """
        def place(match: re.Match) -> str:
            kind, stage, number, downsample = match.groups()
            if downsample:
                return f'stages.{stage}.downsample.'
            first = net.local[int(stage)] if kind == 'QnA' else 0
            return f'stages.{stage}.blocks.{first + int(number) - 1}.'

        converted = {}
        for name, tensor in state.items():
            if 'head_logits' in name:
                continue
            name = _BLOCK.sub(place, name)
            for official, ours in _NAMES.items():
                name = name.replace(official, ours)
            name = re.sub(r'(norm\d\.)scale$', r'\1weight', name)
            if name.endswith('.kernel'):
                name = name.removesuffix('kernel') + 'weight'
                tensor = tensor.movedim((-1, -2), (0, 1))
                if name.endswith('skip.weight'):
                    tensor = tensor.flatten(1)
            elif name.endswith('attn_scale_weights'):
                tensor = tensor.flatten(0, -2)
            converted[name] = tensor
        return converted

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        """The official cases tap raw stage outputs."""
        return dict(arch=variant, out_norm=False)


_COMMON = dict(windows=(7, 7, 14, 7), local_head_dim=32, queries=2)
_TINY = dict(_COMMON, dim=64, depths=(2, 3, 6, 2), local=(0, 0, 4, 2), head_dim=8)
_SMALL = dict(_COMMON, depths=(2, 3, 18, 2), local=(0, 0, 12, 2))
ARCHS = dict(
    tiny=dict(_TINY, kernel=3),
    tiny_7x7=dict(_TINY, kernel=7),
    small=dict(_SMALL, dim=64, head_dim=8, kernel=3),
    base=dict(_SMALL, dim=96, head_dim=16, kernel=3),
)
register(QnA, ARCHS)
