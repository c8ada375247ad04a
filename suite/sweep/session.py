"""A sweep from its arguments to its table."""
from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from backbones.errors import UserError
from backbones.registry import smallest
from suite.cli import training_flags
from suite.hooks import write_text

from . import executors
from .cells import Settings, cells, hashes
from .driver import Sweep
from .live import follow
from .table import line, table


def run(args: Namespace, root: Path) -> int:
    """Carry a sweep out; its results go below ``root``.

    Returns:
        exit status: 1 where a cell was given up.
    """
    for name, least in (('jobs', 1), ('gpus', 0), ('retries', 0)):
        if (value := getattr(args, name)) is not None and value < least:
            raise UserError(f'--{name} {value}: give {least} or more')
    gpus = bool(executors.visible_gpus()) if args.gpus is None else args.gpus
    settings = Settings(args.mini, args.data_root, args.budget, args.subset, training_flags(args),
                        tuple(args.cfg_options), int(gpus))
    names = [name for word in args.backbones
             for name in (smallest() if word == 'all' else [word])]
    todo = cells(names, args.protocols, args.seeds)
    wanted = hashes(todo, settings)
    executor = _executor(args, settings.gpus, root, len(todo))
    print(f'{len(todo)} runs, {executor.jobs} at a time; results go to {root}', flush=True)
    try:
        sweep = Sweep(todo, wanted, settings, root, executor, args.retries)
        follow(sweep)
    except KeyboardInterrupt:
        raise KeyboardInterrupt('the same command goes on from there') from None
    finally:
        executor.close()
    return report(sweep)


def _executor(args: Namespace, gpus: int, root: Path, runs: int):
    if args.executor == 'slurm':
        return executors.Slurm(root, args.jobs or runs, gpus, args.partition, args.hours)
    if args.executor == 'ray':
        return executors.Ray(args.jobs, gpus, args.address)
    return executors.Local(args.jobs, gpus)


def report(sweep: Sweep) -> int:
    """Write and print the table, and name what failed; gives the exit status."""
    text = table(sweep.done)
    write_text(sweep.root / 'table.md', text + '\n')
    print(f'\n{text}\n\nrecords: {sweep.root}/*/*/record.json')
    failed = {cell: record for cell, record in sweep.done.items()
              if record['status'] != 'completed'}
    if failed:
        print(f'\n{len(failed)} of {len(sweep.done)} failed; see output.txt beside the records:')
    for cell, record in failed.items():
        print(line(cell, record))
    return int(bool(failed))
