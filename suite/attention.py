"""DilateFormer's local attention against its textbook form: equal, faster, smaller."""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.dilateformer import dilated_attention

from .speed import measure, peak_bytes

DILATIONS = (1, 2, 3)


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


def compare(shape: tuple[int, int, int, int], heads: int, repeats: int) -> dict:
    """Both forms on the same q, k, v (B x C x H x W), one group of heads per dilation.

    Returns:
        difference: the largest, of outputs and gradients; forward, both: how many times
        less time ours takes; memory_forward, memory_both: its share of the peak memory.
    """
    torch.manual_seed(0)
    qkv = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    out_grad = torch.randn(shape)

    def forward(form: Callable) -> Tensor:
        groups = zip(*(t.chunk(len(DILATIONS), 1) for t in qkv), DILATIONS)
        return torch.cat([form(q, k, v, heads // len(DILATIONS), r) for q, k, v, r in groups], 1)

    def both(form: Callable) -> list[Tensor]:
        out = forward(form)
        return [out, *torch.autograd.grad(out, qkv, out_grad)]

    forms = unfold_attention, dilated_attention
    difference = max((a - b).abs().max().item() for a, b in zip(*(both(form) for form in forms)))
    result = dict(difference=difference)
    for name, call in (('forward', torch.no_grad()(forward)), ('both', both)):
        calls = [lambda call=call, form=form: call(form) for form in forms]
        textbook, ours = measure(calls, repeats)
        result[name] = textbook.median / ours.median
        textbook, ours = map(peak_bytes, calls)
        result[f'memory_{name}'] = ours / textbook
    return result
