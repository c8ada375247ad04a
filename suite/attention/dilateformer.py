"""DilateFormer's attention in its textbook form, and both forms on its first stage."""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.dilateformer import dilated_attention

from . import Case

CHANNELS, HEADS, DILATIONS = 72, 3, (1, 2, 3)


def unfold_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, dilation: int) -> Tensor:
    """The textbook form of ``dilated_attention``: every neighbourhood is copied out by
    unfold, then one small matrix product per position.

    Args and result as there: B x C x H x W.
    """
    batch, channels, height, width = q.shape
    shape = batch, heads, channels // heads

    def neighbours(t: Tensor) -> Tensor:
        columns = F.unfold(t, 3, dilation=dilation, padding=dilation)
        return columns.view(*shape, 9, height * width)

    q = q.view(*shape, 1, height * width).permute(0, 1, 4, 3, 2)
    k, v = neighbours(k).permute(0, 1, 4, 2, 3), neighbours(v).permute(0, 1, 4, 3, 2)
    weights = (q @ k * shape[-1] ** -0.5).softmax(-1)
    return (weights @ v).permute(0, 1, 4, 3, 2).reshape(batch, channels, height, width)


def case(height: int, width: int) -> Case:
    """q, k, v of the tiny network's first stage, one group of heads per dilation."""
    def grouped(form: Callable) -> Callable:
        def call(*qkv: Tensor) -> Tensor:
            groups = zip(*(t.chunk(len(DILATIONS), 1) for t in qkv), DILATIONS)
            return torch.cat([form(q, k, v, HEADS // len(DILATIONS), r)
                              for q, k, v, r in groups], 1)
        return call

    shape = 1, CHANNELS, height // 4, width // 4
    return Case(grouped(unfold_attention), grouped(dilated_attention),
                [torch.randn(shape) for _ in range(3)],
                f'q, k, v of {"x".join(map(str, shape))}, {HEADS} heads')
