"""Measuring time and memory of a call; comparisons are ratios within one run."""
from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

# The profiler narrates every start and stop otherwise.
os.environ.setdefault('KINETO_LOG_LEVEL', '99')


class Timing(NamedTuple):
    """Seconds per call: median, and the 10th and 90th percentile."""

    median: float
    p10: float
    p90: float


def measure(calls: Sequence[Callable[[], object]], repeats: int = 10, warmup: int = 2,
            what: str = 'timing') -> list[Timing]:
    """Time several calls in turns, so that a busy machine slows all of them alike.

    Args:
        calls: what is timed; on a GPU until the device has finished.
        repeats: of each call.
        warmup: calls of each before the first that counts.
        what: title of the bar that a terminal shows meanwhile.
    """
    seconds = np.empty((warmup + repeats, len(calls)))
    with tqdm(total=seconds.size, desc=what, leave=False, disable=None,
              dynamic_ncols=True) as bar:
        for turn, which in np.ndindex(seconds.shape):
            _finish()
            start = time.perf_counter()
            calls[which]()
            _finish()
            seconds[turn, which] = time.perf_counter() - start
            bar.update()
    return [Timing(*np.percentile(column, (50, 10, 90))) for column in seconds[warmup:].T]


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(call: Callable[[], object], device: str = 'cpu') -> int:
    """Most memory that tensors made during a call held at once, its result included; what
    was there before it is not counted.

    Args:
        device: 'cpu' or 'cuda', whose memory is meant.
    """
    gc.collect()  # what is let go in between is not part of the call
    if device == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
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
