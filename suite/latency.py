"""How long backbones take, and how much memory: always side by side in one run."""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .speed import Timing, measure, peak_bytes


class Latency(NamedTuple):
    """One pass of a network: seconds, and bytes that tensors made during it held at once."""

    timing: Timing
    memory: int


def forward(net: nn.Module, x: Tensor) -> object:
    """The maps of an image, without a graph."""
    with torch.inference_mode():
        return net(x)


def both(net: nn.Module, x: Tensor) -> None:
    """Forward and backward through every map."""
    net.zero_grad()
    sum(y.square().mean() for y in net(x)).backward()


# Name, whether in training mode, what is called.
PASSES = (('forward', False, forward), ('forward+backward', True, both))


def compare(nets: Sequence[nn.Module], shape: tuple[int, int, int, int],
            repeats: int) -> dict[str, list[Latency]]:
    """Every network's passes, timed in turns.

    Args:
        nets: put into eval mode for 'forward', into training mode for 'forward+backward'.
        shape: of the input, B x 3 x H x W.
        repeats: of each pass.

    Returns:
        pass -> a latency per network.
    """
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = {}
    for name, training, one in PASSES:
        for net in nets:
            net.train(training)
        calls = [lambda one=one, net=net: one(net, x) for net in nets]
        found[name] = [Latency(timing, peak_bytes(call))
                       for timing, call in zip(measure(calls, repeats), calls)]
    return found
