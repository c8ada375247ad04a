"""The record of a run: ``record.json`` in its work dir, all that reports know of it."""
from __future__ import annotations

import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

from .config import ROOT
from .hooks import write_text

VERSION = 2  # of the layout; raise it when a field changes its meaning
_PACKAGES = ('torch', 'torchvision', 'timm', 'numpy', 'onedl-mmengine', 'onedl-mmcv',
             'onedl-mmdetection', 'onedl-mmsegmentation', 'pycocotools', 'faster-coco-eval')


def commit() -> str:
    """The checkout's commit, with '+changes' where files differ from it, or 'unknown'."""
    def git(*args: str) -> str:
        return subprocess.run(['git', '-C', str(ROOT), *args], capture_output=True, text=True,
                              check=True).stdout.strip()
    try:
        return git('rev-parse', 'HEAD') + '+changes' * bool(git('status', '--porcelain'))
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def versions() -> dict[str, str]:
    """Versions of Python and of every package that a result depends on."""
    found = {'python': platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = 'missing'
    return found


def device() -> str:
    """What the run computes on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'CPU ({os.cpu_count()} cores, {torch.get_num_threads()} threads)'


def peak_memory() -> dict:
    """Most memory held so far, in MiB, and which memory that is."""
    if torch.cuda.is_available():
        return dict(kind='cuda allocated', mib=torch.cuda.max_memory_allocated() / 2 ** 20)
    # Linux counts the resident set in KiB.
    return dict(kind='resident',
                mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


class Record:
    """Written when a run starts (status 'running'), with every evaluation, and at its end
    ('completed', 'failed', 'interrupted'): a run that was killed still tells how far it
    came. A resumed run goes on with the evaluations and the wall time of the record it
    finds.

    Args:
        work_dir: folder of ``record.json``.
        task: 'train' or 'test'.
        resumed: whether the run goes on from a checkpoint.
        facts: what is known at the start: config_hash, backbone, protocol, ...
    """

    def __init__(self, work_dir: str | Path, task: str, resumed: bool = False, **facts):
        self.path = Path(work_dir) / 'record.json'
        earlier = json.loads(self.path.read_text()) if resumed and self.path.exists() else {}
        self._started = time.monotonic() - earlier.get('wall_seconds', 0.)
        self.content = dict(
            version=VERSION, task=task, status='running',
            command=shlex.join([sys.executable, *sys.argv]),
            started=datetime.now(timezone.utc).isoformat(timespec='seconds'),
            resumed=resumed, **facts, commit=commit(), device=device(), versions=versions(),
            images_per_second=earlier.get('images_per_second'),
            metrics=earlier.get('metrics', {}), history=earlier.get('history', []))
        self._write()

    def rewind(self, iteration: int) -> None:
        """Forget the evaluations that the run will repeat, from this iteration on."""
        self.content['history'] = [entry for entry in self.content['history']
                                   if entry['iteration'] < iteration]
        self._write()

    def measured(self, metrics: dict, **where) -> None:
        """Note an evaluation; the newest is the record's ``metrics``."""
        numbers = {name: float(value) for name, value in metrics.items()
                   if isinstance(value, (int, float)) or hasattr(value, 'item')}
        self.content['metrics'] = numbers
        self.content['history'].append({**where, **numbers})
        self._write()

    def trained(self, images_per_second: float) -> None:
        """Note how fast the training steps were."""
        self.content['images_per_second'] = round(images_per_second, 3)

    def close(self, status: str, **facts) -> None:
        """Note how the run ended."""
        self.content.update(status=status, **facts)
        self._write()

    def _write(self) -> None:
        self.content.update(wall_seconds=round(time.monotonic() - self._started, 1),
                            peak_memory=peak_memory())
        write_text(self.path, json.dumps(self.content, indent=1) + '\n')
