"""A stand-in for tools/train.py, for tests of what runs trainings: it notes its start, behaves
as its backbone is called, and writes a record."""
from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections import Counter
from pathlib import Path

from suite.sweep.cells import Cell, Settings
from suite.sweep.driver import Sweep
from suite.sweep.executors import Local

HASH = '0123456789abcdef'
_TRAIN = f'''
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index('--work-dir') + 1])
kind, root = folder.parent.name, folder.parent.parent
with open(root / 'log', 'a') as log:
    log.write(json.dumps([kind, '--resume' in sys.argv, os.environ.get('CUDA_VISIBLE_DEVICES'),
                          os.getpid()]) + chr(10))
def record(status, **facts):
    (folder / 'record.json').write_text(json.dumps(dict(
        status=status, config_hash='{HASH}', started=time.time(), **facts)))
record('running')
if kind.startswith('slow'):
    (folder / 'last_checkpoint').write_text('iter_1.pth')
    while not (root / 'go').exists():
        time.sleep(0.02)
if kind == 'broken' or kind == 'flaky' and '--resume' not in sys.argv:
    (folder / 'last_checkpoint').write_text('iter_1.pth')
    record('failed', error='UserError: no disk')
    sys.exit(1)
if kind == 'mute':
    sys.exit('error: out of words')
if kind == 'shot':
    os.kill(os.getpid(), 9)
record('completed', parameters=12_345_678, wall_seconds=61.2, history=[dict(iteration=300)],
       metrics={{'coco/bbox_mAP': 0.5, 'coco/segm_mAP': 0.25}})
'''


def settings(root: Path, **changes) -> Settings:
    """Settings whose training is the stand-in."""
    program = root / 'fake_train.py'
    program.write_text(_TRAIN)
    return Settings(train=str(program), **changes)


def sweep(root: Path, names: list[str], executor=None, retries: int = 1, jobs: int = 2,
          **changes) -> Sweep:
    """Carry a sweep out to its end."""
    todo = [Cell(name, 'p') for name in names]
    executor = executor or Local(jobs)
    try:
        course = Sweep(todo, dict.fromkeys(todo, HASH), settings(root, **changes), root, executor,
                       retries)
        while not course.over:
            course.step()
            time.sleep(0.01)
    finally:
        executor.close()
    return course


def started(root: Path) -> list[list]:
    """Backbone, whether resumed, visible devices and process of every training so far."""
    path = root / 'log'
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def counts(root: Path) -> Counter:
    return Counter(name for name, *_ in started(root))


def in_background(root: Path, names: list[str], **options) -> multiprocessing.Process:
    """Another sweep, in a process of its own."""
    process = multiprocessing.get_context('fork').Process(
        target=sweep, args=(root, names), kwargs=options)
    process.start()
    return process


def wait_for(condition, seconds: float = 60) -> None:
    """Until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            sys.exit(f'{condition} did not come to hold in {seconds} s')
        time.sleep(0.02)
