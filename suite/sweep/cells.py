"""What a sweep consists of, and the command that runs a part of it."""
from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from backbones.errors import UserError
from suite import budget, flags
from suite.cli import Options
from suite.config import ROOT, fingerprint, load


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
    """What all cells of a sweep share.

    Args:
        flags: arguments of ``flags.apply``.
        options: KEY=VALUE, as for ``--cfg-options``.
        gpus: processes of a run, each on a GPU of its own; 0 is one process on the CPU.
        train: the program that trains, with the arguments of ``tools/train.py``.
    """

    mini: bool = False
    data_root: str | None = None
    budget: str | None = None
    subset: float | None = None
    flags: dict = field(default_factory=dict)
    options: tuple[str, ...] = ()
    gpus: int = 0
    train: str = str(ROOT / 'tools/train.py')


def cells(backbones: Iterable[str], protocols: Iterable[str], seeds: Iterable[int]) -> list[Cell]:
    """All combinations, each once, seed by seed, so that a sweep that is broken off is worth
    most."""
    backbones, protocols = list(backbones), list(protocols)
    return list(dict.fromkeys(Cell(backbone, protocol, seed) for seed in seeds
                              for protocol in protocols for backbone in backbones))


def hashes(todo: Iterable[Cell], settings: Settings) -> dict[Cell, str]:
    """Fingerprints of the configs that cells run.

    Raises:
        UserError: there is no such config, backbone or option.
    """
    options = {}
    for text in settings.options:
        key, equals, value = text.partition('=')
        if not equals:
            raise UserError(f'--cfg-options: {text!r} is not KEY=VALUE')
        options[key] = Options.value(value)
    loaded, found = {}, {}
    for cell in todo:
        if (pair := (cell.backbone, cell.protocol)) not in loaded:
            cfg = loaded[pair] = load(cell.protocol, backbone=cell.backbone, options=options,
                                      mini=settings.mini, data_root=settings.data_root)
            flags.apply(cfg, **settings.flags)
            budget.apply(cfg, settings.budget, settings.subset)
        loaded[pair].randomness.seed = cell.seed
        found[cell] = fingerprint(loaded[pair])
    return found


def command(cell: Cell, settings: Settings, root: Path, resume: bool) -> list[str]:
    """The training command of a cell."""
    words = [sys.executable]
    if settings.gpus > 1:
        words += ['-m', 'torch.distributed.run', '--standalone',
                  f'--nproc_per_node={settings.gpus}']
    words += [settings.train, cell.protocol, '--backbone', cell.backbone,
              '--work-dir', str(cell.folder(root))]
    given = dict(mini=settings.mini, resume=resume, data_root=settings.data_root,
                 budget=settings.budget, subset=settings.subset, **settings.flags)
    for name, value in given.items():
        if value is not None and value is not False:
            words += [f'--{name.replace("_", "-")}', *([] if value is True else [str(value)])]
    return [*words, '--cfg-options', *settings.options, f'randomness.seed={cell.seed}']
