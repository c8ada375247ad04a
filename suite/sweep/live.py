"""A sweep while it runs: a table on a terminal, a line per ended run elsewhere."""
from __future__ import annotations

import re
import time
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table

from suite.progress import clock, summary

from .cells import Cell
from .driver import Sweep
from .table import line

_TICK = 0.5  # seconds between two looks at what runs
_TAIL = 4096  # bytes of a run's output in which its newest line is looked for
# As ``suite.progress`` prints where a training is.
_WHERE = re.compile(r'^((?:epoch (\d+)/(\d+)  )?iter (\d+)/~?(\d+))  .*left ([\d:]+)$', re.M)


class Place(NamedTuple):
    """Where a run is: its state, the line that says how far it came, metrics, time left."""

    state: str = 'starting'
    where: str = ''
    metrics: str = ''
    left: str = ''


def place(cell: Cell, root: Path) -> Place:
    """Read from a run's output and record where it is."""
    try:
        with open(cell.folder(root) / 'output.txt', 'rb') as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            text = file.read().decode(errors='replace')
    except OSError:
        return Place()
    # An earlier attempt stands above the newest command.
    _, _, text = f'\n{text}'.rpartition('\n$ ')
    found = list(_WHERE.finditer(text))
    if not found:
        return Place()
    where, *numbers, left = found[-1].groups()
    metrics = cell.record(root).get('metrics', {})
    over = numbers[:2] in (numbers[1:2] * 2, [None] * 2) and numbers[2] == numbers[3]
    return Place('measuring' if over and not text[found[-1].end():].strip() else 'training',
                 where, summary(metrics) if metrics else '', left)


def follow(sweep: Sweep) -> None:
    """Carry a sweep out, and show how."""
    console = Console(highlight=False, soft_wrap=True)
    started, total = time.monotonic(), len(sweep.waiting) + len(sweep.done)
    for cell, record in sweep.done.items():
        console.print(f'[done before] {line(cell, record)}', markup=False)
    end = 0.
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while not sweep.over:
            for cell, record in sweep.step():
                end = time.monotonic() - started
                tag = f'{len(sweep.done)}/{total}' if cell in sweep.done else 'again'
                console.print(f'[{tag}] {line(cell, record)}', markup=False)
            if console.is_terminal:
                live.update(_picture(sweep, time.monotonic() - started, end), refresh=True)
            time.sleep(_TICK)


def _picture(sweep: Sweep, spent: float, end: float) -> Table:
    table = Table('cell', 'state', 'where', 'metrics', 'left',
                  caption=_counts(sweep, spent, end), caption_justify='left')
    for cell in sweep.running:
        table.add_row(str(cell), *place(cell, sweep.root))
    for cell in sweep.elsewhere:
        table.add_row(str(cell), 'runs in another sweep', *place(cell, sweep.root)[1:])
    return table


def _counts(sweep: Sweep, spent: float, end: float) -> str:
    """Args:
        spent: seconds since the sweep began.
        end: those until the last run that ended, from which the time left is guessed.
    """
    failed = sum(record['status'] != 'completed' for record in sweep.done.values())
    ended, open_ = len(sweep.done) - sweep.before, len(sweep.waiting) + len(sweep.running)
    text = (f'{len(sweep.waiting)} waiting, {len(sweep.running)} running, '
            f'{len(sweep.done) - failed} completed, {failed} failed; {clock(spent)} so far')
    if not ended:
        return text
    return f'{text}, about {clock(max(0, end / ended * open_ - (spent - end)))} left'
