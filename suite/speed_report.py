"""What was timed, for people (a table), for spreadsheets (CSV) and for programs (JSON)."""
from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import torch

from .hooks import write_text
from .latency import Result, Task
from .record import commit, versions
from .roofline import BANDWIDTH

VERSION = 1  # of the record's layout; raise it when a field changes its meaning
MEANING = ('operations are twice the MACs (a backward pass: twice the forward one), per median '
           'second; share_of_peak: of a matrix product in the same precision; '
           'share_of_attainable: of min(peak, bandwidth x operations / bytes), bytes being '
           'image, weights and every leaf module\'s output, each once; all timed in turns')


def device_name(device: str) -> str:
    """The processor or GPU that was measured, in words."""
    if device == 'cuda':
        return torch.cuda.get_device_name()
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        model = next(line.partition(':')[2].strip() for line in lines
                     if line.startswith('model name'))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f'{model}, {os.cpu_count()} cores'


class Report:
    """Everything that is known of a run of ``tools/speed.py``.

    Args:
        device: 'cpu' or 'cuda'.
        repeats: timed calls of each case.
    """

    def __init__(self, device: str, repeats: int):
        self.tasks: list[Task] = []
        self.facts = dict(
            command=shlex.join([sys.executable, *sys.argv]),
            started=datetime.now(timezone.utc).isoformat(timespec='seconds'), commit=commit(),
            device=device_name(device), threads=torch.get_num_threads(), repeats=repeats,
            versions=versions(), loadavg=[os.getloadavg()])
        if device == 'cuda':
            self.facts['versions'] |= dict(cuda=torch.version.cuda,
                                           cudnn=str(torch.backends.cudnn.version()))

    def head(self) -> str:
        """What was measured on, in a line."""
        facts = self.facts
        return (f'{facts["device"]}, {facts["threads"]} thread(s), torch '
                f'{facts["versions"]["torch"]}, load {facts["loadavg"][0][0]:.1f}; medians of '
                f'{facts["repeats"]} (p10-p90), all in turns')

    def rows(self) -> list[dict]:
        """A flat row per result, in SI units and MiB, to six figures."""
        return [{key: float(f'{value:.6g}') if isinstance(value, float) else value
                 for key, value in _row(task.name, result).items()}
                for task in self.tasks for result in task.results]

    def write_csv(self, path: str) -> None:
        """The rows with what they were measured on, so that files can be put together; the
        file is written whole, and replaces what was there."""
        facts = self.facts
        known = dict(device=facts['device'], threads=facts['threads'],
                     torch=facts['versions']['torch'], commit=facts['commit'],
                     started=facts['started'])
        text = io.StringIO()
        rows = [{**row, **known} for row in self.rows()]
        table = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
        table.writeheader()
        table.writerows(rows)
        write_text(Path(path).expanduser(), text.getvalue())

    def write_record(self, path: str) -> None:
        """Everything as JSON, with what the shares mean and the peaks they are of."""
        self.facts['loadavg'].append(os.getloadavg())
        peaks = {task.name: task.rates for task in self.tasks if task.rates}
        content = dict(version=VERSION, kind='speed', **self.facts, meaning=MEANING,
                       peaks=peaks, results=self.rows())
        write_text(Path(path).expanduser(), json.dumps(content, indent=1) + '\n')


def _row(task: str, result: Result) -> dict:
    case, timing = result.case, result.timing
    batch, _, height, width = case.shape
    flops = speed = of_peak = of_attainable = None
    if case.work:
        flops = case.times * case.work.flops(batch)
        speed, of_peak, of_attainable = result.shares
    return dict(
        task=task, backbone=case.system.name,
        options=' '.join(f'{key}={value}' for key, value in case.system.options.items()),
        mode=str(case.mode), precision=case.mode.precision, protocol=case.protocol,
        mini=case.mini, batch=batch, height=height, width=width, p10_seconds=timing.p10,
        p50_seconds=timing.median, p90_seconds=timing.p90,
        images_per_second=result.images_per_second, memory_mib=result.memory / 2 ** 20,
        flops=flops, flops_per_second=speed, share_of_peak=of_peak,
        share_of_attainable=of_attainable)


def table(task: Task, modes: int) -> Iterator[str]:
    """A task's results as lines; 'faster' is the time of a network's first mode over that of
    this one.

    Args:
        modes: how many results there are of each network.
    """
    rates = ', '.join(f'{"stream triad" if name == BANDWIDTH else f"product in {name}"} '
                      + quantity(rate, 'B/s' if name == BANDWIDTH else 'FLOP/s')
                      for name, rate in task.rates.items())
    shape = 'x'.join(map(str, task.results[0].case.shape))
    yield f'{task.name} of {shape}' + f' ({rates})' * bool(rates)
    lines = [('', '', 'ms (p10-p90)', 'images/s', 'MiB', 'faster',
              *('of peak', 'attainable') * bool(rates))]
    for which, result in enumerate(task.results):
        ms = [1e3 * seconds for seconds in result.timing]
        first = task.results[which - which % modes].timing.median
        lines.append((result.case.system.name, str(result.case.mode),
                      f'{ms[0]:.1f} ({ms[1]:.1f}-{ms[2]:.1f})',
                      f'{result.images_per_second:.2f}', f'{result.memory / 2 ** 20:.0f}',
                      f'{first / result.timing.median:.2f}',
                      *(f'{share:.0%}' for share in (result.shares or ())[1:])))
    widths = [max(map(len, column)) for column in zip(*lines)]
    for name, mode, *numbers in lines:
        cells = (f'{number:>{width}}' for number, width in zip(numbers, widths[2:]))
        yield f'  {name:<{widths[0]}}  {mode:<{widths[1]}}  ' + '  '.join(cells)
    for ours, other in zip(task.results, task.results[modes:]):
        yield (f'  ratio, {ours.case.mode}: {other.timing.median / ours.timing.median:.2f} in '
               f'time, {other.memory / ours.memory:.2f} in memory')


def quantity(value: float, unit: str) -> str:
    """A number of three figures with its unit: 79.8 GFLOP/s."""
    power = min(4, max(0, int(math.log10(value)) // 3))
    return f'{value / 1000 ** power:.3g} {" kMGT"[power].strip()}{unit}'
