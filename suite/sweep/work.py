"""One cell, from its lock to its record: what a worker does, wherever it runs."""
from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .cells import Cell, Settings, command

ELSEWHERE = 'elsewhere'  # status of a cell that another sweep runs at this moment
_children: set[subprocess.Popen] = set()


@contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """Hold a cell's lock; gives its descriptor, or None where somebody else holds it.

    The kernel drops a lock with the last process that has the descriptor, however it ends:
    handed down to the training, the lock lives exactly as long as either of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / '.lock', 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


def completed(record: dict, wanted: str) -> bool:
    """Whether a record is that of a finished run with the wanted settings."""
    return record.get('status') == 'completed' and record.get('config_hash') == wanted


def run_cell(cell: Cell, settings: Settings, root: Path, wanted: str,
             devices: str | None = None) -> dict:
    """Run a cell to its end, unless it is finished or runs elsewhere.

    Args:
        wanted: fingerprint of its config.
        devices: value of CUDA_VISIBLE_DEVICES; None leaves it to the environment.

    Returns:
        Its record; of a run that could not write its own, the status 'failed' and the error.
        Its output is appended to ``output.txt``.
    """
    folder = cell.folder(root)
    with locked(folder) as lock:
        if lock is None:
            return dict(status=ELSEWHERE)
        earlier = cell.record(root)
        if completed(earlier, wanted):
            return earlier
        resume = earlier.get('config_hash') == wanted and (folder / 'last_checkpoint').exists()
        words = command(cell, settings, root, resume)
        with open(folder / 'output.txt', 'a') as output:
            output.write(f'$ {shlex.join(words)}\n')
            output.flush()
            status = _run(words, output, lock, _environment(root, devices))
        record = cell.record(root)
    if completed(record, wanted) or (record.get('status') == 'failed' and record != earlier):
        return record
    return dict(status='failed', error=_error(folder, status, record))


def _environment(root: Path, devices: str | None) -> dict[str, str]:
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    if devices is not None:
        environment['CUDA_VISIBLE_DEVICES'] = devices
    if environment.pop('PYTHONDONTWRITEBYTECODE', ''):
        # Compiling what a run imports takes a third of a short one.
        environment.setdefault('PYTHONPYCACHEPREFIX', str(root / '.pycache'))
    return environment


def _run(words: list[str], output, lock: int, environment: dict[str, str]) -> int:
    leash = [sys.executable, str(Path(__file__).with_name('leash.py')), str(os.getpid())]
    # A session of its own: Ctrl-C reaches it through ``interrupt``, once.
    child = subprocess.Popen([*leash, *words], stdin=subprocess.DEVNULL, stdout=output,
                             stderr=subprocess.STDOUT, env=environment, pass_fds=(lock,),
                             start_new_session=True)
    _children.add(child)
    try:
        return child.wait()
    finally:
        _children.discard(child)


def interrupt() -> None:
    """Send Ctrl-C to all runs that this process started; they save what they have."""
    for child in list(_children):
        child.send_signal(signal.SIGINT)


def _error(folder: Path, status: int, record: dict) -> str:
    """Why a run ended that left no word about it."""
    if status < 0:
        return f'killed by {signal.Signals(-status).name}'
    if record.get('status') == 'completed':
        return ('its record is of other settings than the sweep asked for: code or configs were '
                'changed meanwhile; repeat the command')
    if status == 0:
        return f'the run ended, but its record is {record.get("status", "not there")}'
    lines = (folder / 'output.txt').read_text(errors='replace').strip().splitlines()
    return f'{lines[-1].removeprefix("error: ")} (exit status {status})'
