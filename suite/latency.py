"""How long networks take in each mode, and how much memory: side by side in one run."""
from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

import backbones
from backbones.errors import UserError

from . import roofline
from .compilation import need_compiler
from .complexity import need_size
from .modes import EAGER, Mode
from .speed import Timing, measure, peak_bytes


@dataclass(frozen=True)
class System:
    """A backbone, and what its constructor is told besides."""

    name: str
    options: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One of the calls that are timed in turns.

    Args:
        shape: of what goes into it, B x 3 x H x W.
        call: the pass, or several.
        work: of one image's forward pass, where it is known.
        times: how many forward passes' work a call is.
        repeated: how often a call goes through its input.
        protocol, mini: what a train step is of.
    """

    system: System
    mode: Mode
    shape: tuple[int, ...]
    call: Callable[[], object]
    work: roofline.Work | None = None
    times: int = 1
    repeated: int = 1
    protocol: str | None = None
    mini: bool | None = None

    def __str__(self) -> str:
        return f'{self.system.name} ({self.mode}) on {"x".join(map(str, self.shape))}'


@dataclass(frozen=True)
class Result:
    """A case's time, memory in bytes (see ``peak_bytes``), and place below the roof."""

    case: Case
    timing: Timing
    memory: int
    shares: roofline.Shares | None

    @property
    def images_per_second(self) -> float:
        return self.case.repeated * self.case.shape[0] / self.timing.median


@dataclass(frozen=True)
class Task:
    """One kind of pass: its results, and what the device reached meanwhile, in operations
    or bytes per second (see ``roofline.meters``)."""

    name: str
    results: list[Result]
    rates: dict[str, float]


def forward(net: nn.Module, x: Tensor, mode: Mode = EAGER) -> Sequence[Tensor]:
    """The maps of an image, without a graph."""
    with torch.inference_mode(), mode.autocast(x.device.type):
        return net(x)


def both(net: nn.Module, x: Tensor, mode: Mode = EAGER) -> None:
    """Forward and backward through every map; the gradients are let go at the end."""
    with mode.autocast(x.device.type):
        loss = sum(y.square().mean() for y in net(x))
    loss.backward()
    net.zero_grad()


# Name, whether in training mode, what is called, work in forward passes.
PASSES = (('forward', False, forward, 1), ('forward+backward', True, both, 3))


def need(device: str, modes: Sequence[Mode], **counts: int) -> None:
    """Raise a UserError where there is no such device, nothing to compile with, or a count
    is no positive number."""
    for name, value in counts.items():
        if value < 1:
            raise UserError(f'--{name} must be 1 or more, got {value}')
    if device == 'cuda' and not torch.cuda.is_available():
        raise UserError('--device cuda: torch finds no GPU here; leave it out to measure the CPU, '
                        'or see python tools/doctor.py')
    if any(mode.compiled for mode in modes):
        need_compiler('--modes compile')


def of_backbones(systems: Sequence[System], modes: Sequence[Mode], shape: tuple[int, ...],
                 device: str, repeats: int) -> Iterator[Task]:
    """Time every pass of every system in every mode.

    Args:
        shape: of the input, B x 3 x H x W.
        device: 'cpu' or 'cuda'.
        repeats: of each pass.

    Raises:
        UserError: a network refuses the size, cannot be compiled, or needs too much memory.
    """
    nets = []
    for system in systems:
        work = _work(system, shape[2:])
        net = backbones.create(system.name, **system.options).to(device)
        for mode in modes:
            own = copy.deepcopy(net)
            mode.prepare(own)
            nets.append((system, mode, own, work))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    for name, training, one, times in PASSES:
        for _, _, net, _ in nets:
            net.train(training)
        yield timed(name, [
            Case(system, mode, shape, lambda one=one, net=net, mode=mode: one(net, x, mode),
                 work, times) for system, mode, net, work in nets], device, repeats)


def _work(system: System, size: tuple[int, int]) -> roofline.Work:
    """The work of a system, which also shows early whether it takes the size."""
    need_size(size)
    with torch.device('meta'):
        net = backbones.create(system.name, **system.options).eval()
        with _told(f'{system.name} on {size[0]} x {size[1]}'):
            found = roofline.work(net, size)
    if found is None:
        raise UserError(f'{system.name} takes images of {net.size[0]} x {net.size[1]} only, not '
                        f'{size[0]} x {size[1]}; choose that --size, or build it for another '
                        'with --options img_size=...')
    return found


def timed(name: str, cases: Sequence[Case], device: str, repeats: int) -> Task:
    """Time cases in turns with the device's own peaks, after one trial of each and, to warm
    up, a fifth as many turns as count."""
    for case in tqdm(cases, desc=f'{name}: first calls', leave=False, disable=None):
        with _told(f'{name} of {case}'):
            case.call()
    known = [case.mode.dtype for case in cases if case.work]
    meters = roofline.meters(device, known) if known else {}
    calls = [meter.call for meter in meters.values()] + [case.call for case in cases]
    timings = measure(calls, repeats, max(1, repeats // 5), name)
    rates = {key: meter.amount / timing.median
             for (key, meter), timing in zip(meters.items(), timings)}
    results = [Result(case, timing, peak_bytes(case.call, device), _shares(case, timing, rates))
               for case, timing in zip(cases, timings[len(meters):])]
    return Task(name, results, rates)


def _shares(case: Case, timing: Timing, rates: dict[str, float]) -> roofline.Shares | None:
    if case.work is None:
        return None
    batch, dtype = case.shape[0], case.mode.dtype
    return roofline.shares(case.times * case.work.flops(batch),
                           case.work.intensity(batch, dtype), timing.median, rates, dtype)


@contextmanager
def _told(what: str):
    """Turns what networks and torch raise on a size, a mode or too little memory into one
    line that says whom it happened to."""
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        if isinstance(error, torch._dynamo.exc.TorchDynamoException):
            what += ' cannot be compiled'
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise UserError(f'{what}: {reason}') from error
