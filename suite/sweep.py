"""Many runs, each in a process of its own, none of them twice.

A sweep is a folder with one work dir per cell (backbone, protocol, seed). All that is known
of a cell is its record: a completed one with the wanted settings is not run again, one that
was broken off goes on from its newest checkpoint.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from backbones.errors import UserError

from . import flags
from .config import ROOT, fingerprint, load
from .progress import clock, summary


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    backbone: str
    protocol: str
    seed: int = 0

    def __str__(self) -> str:
        return f'{self.backbone} {self.protocol} seed {self.seed}'

    def folder(self, root: Path) -> Path:
        """Where its results lie."""
        return root / self.backbone.replace('/', '_') / f'{self.protocol}_seed{self.seed}'

    def record(self, root: Path) -> dict:
        """Its record; empty if there is none, or none that can be read."""
        try:
            return json.loads((self.folder(root) / 'record.json').read_text())
        except (OSError, ValueError):
            return {}


@dataclass(frozen=True)
class Settings:
    """What all cells of a sweep share."""

    mini: bool = False
    amp: bool = False
    data_root: str | None = None
    options: tuple[str, ...] = ()  # KEY=VALUE
    threads: int = 1


def cells(backbones: Iterable[str], protocols: Iterable[str], seeds: Iterable[int]) -> list[Cell]:
    """All combinations, seed by seed, so that a sweep that is broken off is worth most."""
    backbones, protocols = list(backbones), list(protocols)
    return [Cell(backbone, protocol, seed) for seed in seeds for protocol in protocols
            for backbone in backbones]


def config_hash(cell: Cell, settings: Settings) -> str:
    """Fingerprint of the config that a cell runs.

    Raises:
        UserError: there is no such config, backbone or option.
    """
    from .cli import Options
    options = {key: Options.value(value) for key, _, value in
               (text.partition('=') for text in settings.options)}
    cfg = load(cell.protocol, backbone=cell.backbone, mini=settings.mini,
               data_root=settings.data_root, options={**options, 'randomness.seed': cell.seed})
    return fingerprint(flags.apply(cfg, amp=settings.amp))


def command(cell: Cell, settings: Settings, root: Path, resume: bool) -> list[str]:
    """The training command of a cell."""
    words = [sys.executable, str(ROOT / 'tools/train.py'), cell.protocol, '--backbone',
             cell.backbone, '--work-dir', str(cell.folder(root))]
    words += ['--mini'] * settings.mini + ['--amp'] * settings.amp + ['--resume'] * resume
    if settings.data_root:
        words += ['--data-root', settings.data_root]
    return [*words, '--cfg-options', *settings.options, f'randomness.seed={cell.seed}']


def run_cell(cell: Cell, settings: Settings, root: Path, wanted: str) -> dict:
    """Run a cell to its end and return its record; its output goes to ``output.txt``."""
    folder = cell.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    known = cell.record(root).get('config_hash') == wanted
    resume = known and (folder / 'last_checkpoint').exists()
    threads = str(settings.threads)
    with open(folder / 'output.txt', 'a') as output:
        done = subprocess.run(command(cell, settings, root, resume), stdin=subprocess.DEVNULL,
                              stdout=output, stderr=subprocess.STDOUT,
                              env={**os.environ, 'OMP_NUM_THREADS': threads})
    record = cell.record(root)
    if done.returncode and record.get('status') != 'failed':
        last = (folder / 'output.txt').read_text(errors='replace').strip().splitlines()[-1:]
        record = dict(status='failed', error=' '.join(last) or f'exit status {done.returncode}')
    return record


def sweep(todo: Sequence[Cell], settings: Settings, root: Path, jobs: int) -> Iterator[
        tuple[Cell, dict]]:
    """Run cells, ``jobs`` at a time; yields each with its record as soon as it ends."""
    wanted = {cell: config_hash(cell, settings) for cell in todo}
    waiting = []
    for cell in todo:
        record = cell.record(root)
        if record.get('status') == 'completed' and record.get('config_hash') == wanted[cell]:
            yield cell, record
        else:
            waiting.append(cell)
    with ThreadPoolExecutor(jobs) as pool:
        runs = {pool.submit(run_cell, cell, settings, root, wanted[cell]): cell
                for cell in waiting}
        try:
            for run in as_completed(runs):
                yield runs[run], run.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def line(cell: Cell, record: dict) -> str:
    """How a cell ended, in one line."""
    if record.get('status') != 'completed':
        return f'{cell}  {record.get("status")}: {record.get("error", "no record")}'
    return f'{cell}  {summary(record["metrics"])}  in {clock(record["wall_seconds"])}'


def table(done: dict[Cell, dict]) -> str:
    """Completed cells of one sweep as a Markdown table, metrics in [0, 1]."""
    completed = {cell: record for cell, record in done.items()
                 if record.get('status') == 'completed'}
    if not completed:
        raise UserError('no cell was completed')
    rows = []
    for cell, record in sorted(completed.items(), key=lambda item: str(item[0])):
        backbone = cell.backbone + ' (a reconstruction)' * record.get('reconstruction', False)
        rows.append({'backbone': backbone, 'protocol': cell.protocol, 'seed': str(cell.seed),
                     'parameters': f'{record["parameters"] / 1e6:.1f} M',
                     **dict(_headline(record['metrics'])),
                     'iterations': str(record['history'][-1]['iteration']),
                     'seconds': f'{record["wall_seconds"]:.0f}'})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    # What is the same everywhere is a title, not a column.
    fixed = [name for name in ('protocol', 'seed') if len({row[name] for row in rows}) == 1]
    shown = [name for name in columns if name not in fixed]
    lines = [', '.join(f'{name} {rows[0][name]}' for name in fixed) + '\n'] if fixed else []
    lines += [f'| {" | ".join(shown)} |', '|---' * len(shown) + '|']
    return '\n'.join(lines + [f'| {" | ".join(row.get(name, "") for name in shown)} |'
                              for row in rows])


def _headline(metrics: dict) -> Iterator[tuple[str, str]]:
    # ``summary`` says which metrics count and in which unit; a table needs the main ones.
    for part in summary(metrics).split('  '):
        name, _, value = part.rpartition(' ')
        if name in ('Dice', 'AJI', 'PQ') or name.endswith(('mAP', 'mIoU')):
            yield name, value
