"""What a host offers so that GrafT can graft onto it: blocks that are ``Graftable``.

Such a block adds, to what its attention makes of its normed input, what a graft makes of it::

    class Block(Graftable):
        def __init__(self, dim, heads, drop_path):
            super().__init__(dim, heads)
            ...

        def forward(self, x):                                # B x H x W x C
            u = self.norm1(x)
            x = x + self.drop_path(self.attn(u))
            if self.graft is not None:
                x = x + self.drop_path(self.graft(u))
            return x + self.drop_path(self.mlp(self.norm2(x)))

That is all. A host whose blocks are like this can be named to GrafT; without grafts its state
dict, its numbers and its speed are what they were.
"""
from __future__ import annotations

import math
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class Site(NamedTuple):
    """What a graft takes over from the block it stands at."""

    dim: int
    heads: int
    window: int | None  # side of the attention's windows; None: it is global
    eps: float  # of its LayerNorm


class Graftable(nn.Module):
    """A transformer block with a place for a graft.

    Args:
        dim, heads, window, eps: see ``Site``.

    Attributes:
        graft: None, or a module on maps, B x H x W x C -> the same.
    """

    def __init__(self, dim: int, heads: int, window: int | None = None, eps: float = 1e-5):
        super().__init__()
        self.site = Site(dim, heads, window, eps)
        self.graft: nn.Module | None = None

    def graft_tokens(self, u: Tensor, size: tuple[int, int]) -> Tensor:
        """The graft's answer where a map comes as tokens, B x N x C: it sees the last H * W
        of them, and those before, such as a class token, get zeros."""
        others = u.shape[1] - math.prod(size)
        answer = self.graft(u[:, others:].unflatten(1, size)).flatten(1, 2)
        return F.pad(answer, (0, 0, others, 0)) if others else answer


def sites(host: nn.Module) -> dict[str, Graftable]:
    """The blocks of a host that take a graft, by name, from the first to the last."""
    return {name: module for name, module in host.named_modules()
            if isinstance(module, Graftable)}
