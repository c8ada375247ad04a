"""What runs, what waits, what is done: the course of a sweep."""
from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path

from .cells import Cell, Settings
from .work import ELSEWHERE, completed, locked, run_cell


class Sweep:
    """Runs cells on an executor, and failed ones again. Call ``step`` until it is ``over``.

    Args:
        wanted: fingerprint of each cell's config, see ``cells.hashes``.
        retries: how often a failed run is repeated.

    Attributes:
        waiting: cells to be run.
        running: cells that the executor has.
        elsewhere: those of ``waiting`` that another sweep runs at the moment.
        done: record of every cell that is completed or was given up.
    """

    def __init__(self, todo: Sequence[Cell], wanted: dict[Cell, str], settings: Settings,
                 root: Path, executor, retries: int = 1):
        self.settings, self.root, self.executor, self.retries = settings, root, executor, retries
        self.wanted, self.attempts = wanted, Counter()
        self.waiting = deque(todo)
        self.running: dict[Cell, object] = {}
        self.elsewhere: set[Cell] = set()
        self.done: dict[Cell, dict] = {}
        self.before = len(self._collect())  # how many were completed when it began

    @property
    def over(self) -> bool:
        return not self.waiting and not self.running

    def step(self) -> list[tuple[Cell, dict]]:
        """Look after what runs, then start what can start.

        Returns:
            cells whose run ended since, with their records; those not in ``done`` wait to be
            run again.
        """
        ended = [end for cell in list(self.running) if (end := self._end(cell))]
        if len(self.running) < self.executor.jobs:
            ended += self._collect()
            for cell in [cell for cell in self.waiting if cell not in self.elsewhere]:
                if len(self.running) == self.executor.jobs:
                    break
                self._start(cell)
        return ended

    def _collect(self) -> list[tuple[Cell, dict]]:
        """Take from the waiting cells those that are completed, and note which are locked."""
        found, self.elsewhere = [], set()
        for cell in list(self.waiting):
            with locked(cell.folder(self.root)) as lock:
                if lock is None:
                    self.elsewhere.add(cell)
                elif completed(record := cell.record(self.root), self.wanted[cell]):
                    self.waiting.remove(cell)
                    self.done[cell] = record
                    found.append((cell, record))
        return found

    def _start(self, cell: Cell) -> None:
        self.waiting.remove(cell)
        self.attempts[cell] += 1
        self.running[cell] = self.executor.submit(run_cell, cell, self.settings, self.root,
                                                  self.wanted[cell])

    def _end(self, cell: Cell) -> tuple[Cell, dict] | None:
        if not self.running[cell].done():
            return None
        try:
            record = self.running.pop(cell).result()
        except Exception as error:  # the worker itself was lost: a node, a Ray process
            lines = str(error).strip().splitlines() or [type(error).__name__]
            record = dict(status='failed', error=f'its worker was lost: {lines[0]}')
        if record['status'] == ELSEWHERE:
            self.attempts[cell] -= 1
            self.waiting.append(cell)
            return None
        if completed(record, self.wanted[cell]) or self.attempts[cell] > self.retries:
            self.done[cell] = record
        else:
            self.waiting.append(cell)
        return cell, record
