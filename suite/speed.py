"""Measuring time and memory of a call; comparisons are ratios within one run."""
from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

# The profiler narrates every start and stop otherwise.
os.environ.setdefault('KINETO_LOG_LEVEL', '99')


class Timing(NamedTuple):
    """Seconds per call: median, and the 10th and 90th percentile."""

    median: float
    p10: float
    p90: float


def measure(calls: Sequence[Callable[[], object]], repeats: int = 10,
            warmup: int = 2) -> list[Timing]:
    """Time several calls in turns, so that a busy machine slows all of them alike."""
    seconds = np.empty((warmup + repeats, len(calls)))
    for turn in range(warmup + repeats):
        for which, call in enumerate(calls):
            _finish()
            start = time.perf_counter()
            call()
            _finish()
            seconds[turn, which] = time.perf_counter() - start
    return [Timing(*np.percentile(column, (50, 10, 90))) for column in seconds[warmup:].T]


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(call: Callable[[], object]) -> int:
    """Most memory that tensors made during a CPU call held at once, its result included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True,
                 acc_events=True) as trace:
        result = call()
    del result
    held = peak = 0
    for event in trace.profiler.kineto_results.events():
        if event.name() == '[memory]':
            held += event.nbytes()
            peak = max(peak, held)
    return peak
