"""What a device could do at most with a network: its measured peaks, and the roof below them.

A network's floating-point operations (twice its MACs, see ``suite.complexity``) over the time
of a pass are its speed. Its *share of the peak* is that speed over the speed of a large
matrix product in the same precision. Its *share of the attainable* is that speed over

    min(peak, bandwidth x operations / bytes),

the roofline model (Williams et al., 2009), with the bandwidth of a stream triad. The bytes
are a lower bound: image, weights, and what every leaf module puts out, each once, at 4 bytes
a number, under bfloat16 at 2. A backward pass counts as twice the forward one, in operations
(each product has two in its backward) as in bytes. Peaks and passes are timed in turns, and
medians compared, so that other load on the machine slows both.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from . import complexity

SIDE = {'cpu': 2048, 'cuda': 8192}  # of the square matrices
LENGTH = {'cpu': 2 ** 25, 'cuda': 2 ** 27}  # of the vectors: far beyond every cache
BANDWIDTH = 'bandwidth'


class Work(NamedTuple):
    """What one forward pass of one image takes: multiply-accumulates, numbers in weights,
    and numbers in the image and in what modules put out."""

    macs: int
    weights: int
    maps: int

    def flops(self, batch: int) -> int:
        return 2 * self.macs * batch

    def intensity(self, batch: int, dtype: torch.dtype) -> float:
        """Floating-point operations per byte; larger batches share the weights."""
        return self.flops(batch) / (dtype.itemsize * (self.weights + batch * self.maps))


def work(net: nn.Module, size: tuple[int, int]) -> Work | None:
    """Count the work of a network; None where it refuses the size.

    Args:
        net: in eval mode; on the meta device nothing is computed.
        size: H, W of the image.
    """
    maps = [3 * size[0] * size[1]]

    def note(module: nn.Module, inputs: tuple, output) -> None:
        outputs = output if isinstance(output, (tuple, list)) else [output]
        maps.extend(t.numel() for t in outputs if isinstance(t, torch.Tensor))

    hooks = [module.register_forward_hook(note) for module in net.modules()
             if not any(module.children())]
    try:
        found = complexity.count(net, size)
    finally:
        for hook in hooks:
            hook.remove()
    if found.macs is None:
        return None
    return Work(found.macs, found.parameters, sum(maps))


class Meter(NamedTuple):
    """A call that a device is measured by, and its operations or bytes."""

    call: Callable[[], object]
    amount: int


def meters(device: str, dtypes: Sequence[torch.dtype], side: int | None = None,
           length: int | None = None) -> dict[str, Meter]:
    """A matrix product per precision, under the precision's name, and a stream triad, under
    BANDWIDTH; not counted is what caches fetch before they write, as in STREAM.

    Args:
        side, length: of matrices and vectors, default SIDE and LENGTH.
    """
    side, length = side or SIDE[device], length or LENGTH[device]
    found = {name(dtype): Meter(_product(device, dtype, side), 2 * side ** 3)
             for dtype in dict.fromkeys(dtypes)}
    a, b, c = torch.rand(3, length, device=device)
    found[BANDWIDTH] = Meter(lambda: torch.add(a, b, alpha=3., out=c), 3 * 4 * length)
    return found


def _product(device: str, dtype: torch.dtype, side: int) -> Callable[[], object]:
    a, b, c = torch.rand(3, side, side, device=device, dtype=dtype)

    def call() -> None:
        with _as_convolutions(device):
            torch.mm(a, b, out=c)
    return call


@contextmanager
def _as_convolutions(device: str):
    """float32 products as cuDNN's convolutions do them: in TF32, unless that is off. The
    peak must be of the fastest arithmetic that a network may use."""
    before = torch.get_float32_matmul_precision()
    if device == 'cuda' and torch.backends.cudnn.allow_tf32:
        torch.set_float32_matmul_precision('high')
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def name(dtype: torch.dtype) -> str:
    """'float32', 'bfloat16'."""
    return str(dtype).removeprefix('torch.')


class Shares(NamedTuple):
    """Operations per second, and their shares of the peak and of the attainable."""

    speed: float
    peak: float
    attainable: float


def shares(flops: float, intensity: float, seconds: float, rates: dict[str, float],
           dtype: torch.dtype) -> Shares:
    """Where a pass stands below the roof.

    Args:
        flops: of the pass.
        intensity: operations per byte.
        rates: what ``meters`` reached, in operations or bytes per second.
    """
    speed, peak = flops / seconds, rates[name(dtype)]
    return Shares(speed, speed / peak, speed / min(peak, rates[BANDWIDTH] * intensity))
