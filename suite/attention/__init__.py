"""Local attention by views against its textbook form: equal, faster, smaller.

One module per system holds the textbook form and ``case(height, width)``, both forms on the
map that an image of that size gives.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..speed import measure, peak_bytes

SYSTEMS = sorted(path.stem for path in Path(__file__).parent.glob('[!_]*.py'))


class Case(NamedTuple):
    """Two forms of one function, and what both are called with."""

    textbook: Callable[..., Tensor]
    ours: Callable[..., Tensor]
    inputs: Sequence[Tensor]  # all of them get a gradient
    what: str  # the input in words


class Comparison(NamedTuple):
    """Largest difference of outputs and gradients; then, forward and forward with backward,
    how many times less time ours takes, and its share of the peak memory."""

    difference: float
    forward: float
    both: float
    memory_forward: float
    memory_both: float


def case(system: str, height: int, width: int) -> Case:
    """The comparison of a system for images of height x width."""
    torch.manual_seed(0)
    return import_module(f'{__name__}.{system}').case(height, width)


def compare(case: Case, repeats: int) -> Comparison:
    """Run both forms of a case in turns."""
    inputs = [t.requires_grad_() for t in case.inputs]
    forms = case.textbook, case.ours
    with torch.no_grad():
        out_grad = torch.randn_like(case.ours(*inputs))

    @torch.no_grad()
    def forward(form: Callable) -> Tensor:
        return form(*inputs)

    def both(form: Callable) -> list[Tensor]:
        out = form(*inputs)
        return [out, *torch.autograd.grad(out, inputs, out_grad)]

    difference = max((a - b).abs().max().item() for a, b in zip(*(both(form) for form in forms)))
    faster, memory = [], []
    for call in (forward, both):
        calls = [lambda call=call, form=form: call(form) for form in forms]
        textbook, ours = measure(calls, repeats)
        faster.append(textbook.median / ours.median)
        textbook, ours = map(peak_bytes, calls)
        memory.append(ours / textbook)
    return Comparison(difference, *faster, *memory)
