"""Where the runs of a sweep run: here, under Slurm, on a Ray cluster.

All have ``jobs``, the number of runs that they take at a time, and ``submit``, which gives
back something with ``done()`` and ``result()``. A Slurm or Ray cluster must see the
checkout, its environment and the sweep's folder under the same paths.
"""
from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import torch

from backbones.errors import UserError
from suite.config import ROOT

from .work import interrupt

NAMES = ('local', 'slurm', 'ray')


def visible_gpus() -> list[str]:
    """This machine's GPUs, as CUDA_VISIBLE_DEVICES names them."""
    if names := os.environ.get('CUDA_VISIBLE_DEVICES'):
        return names.split(',')
    return [str(number) for number in range(torch.cuda.device_count())]


class Local:
    """Processes on this machine, each run on GPUs of its own."""

    def __init__(self, jobs: int | None = None, gpus: int = 0):
        devices = visible_gpus()
        if gpus > len(devices):
            raise UserError(f'--gpus {gpus}: this machine has {len(devices)}')
        most = len(devices) // gpus if gpus else os.cpu_count()
        self.jobs = min(jobs or most, most) if gpus else jobs or most
        self._places: SimpleQueue[str | None] = SimpleQueue()
        for job in range(self.jobs):
            mine = devices[job * gpus:(job + 1) * gpus]
            self._places.put(','.join(mine) if gpus else None)
        self._pool = ThreadPoolExecutor(self.jobs)

    def submit(self, function: Callable[..., dict], *arguments) -> Future:
        def run() -> dict:
            devices = self._places.get()
            try:
                return function(*arguments, devices)
            finally:
                self._places.put(devices)
        return self._pool.submit(run)

    def close(self) -> None:
        interrupt()
        self._pool.shutdown(cancel_futures=True)


class Slurm:
    """A Slurm job per run, through submitit, whose files go to ``FOLDER/slurm``.

    Args:
        cluster: submitit's name of what takes the jobs; 'local' does so without Slurm.
    """

    def __init__(self, folder: Path, jobs: int, gpus: int = 0, partition: str | None = None,
                 hours: float = 24, cluster: str = 'slurm'):
        try:
            import submitit
        except ModuleNotFoundError as error:
            raise _missing('submitit', 'slurm') from error
        self.jobs, self._jobs = jobs, []
        _show_checkout()
        try:
            self._executor = submitit.AutoExecutor(folder / 'slurm', cluster=cluster)
        except RuntimeError as error:
            raise UserError(f'--executor slurm: {_line(error)}') from error
        self._executor.update_parameters(
            name='densebench', nodes=1, tasks_per_node=1, gpus_per_node=gpus,
            cpus_per_task=4 * gpus or 1, timeout_min=max(1, round(hours * 60)),
            **dict(slurm_partition=partition) if partition else {})

    def submit(self, function: Callable[..., dict], *arguments):
        try:
            self._jobs.append(self._executor.submit(function, *arguments))
        except (RuntimeError, OSError) as error:
            raise UserError(f'Slurm takes no job: {_line(error)}') from error
        return self._jobs[-1]

    def close(self) -> None:
        for job in self._jobs:
            if not job.done():
                job.cancel()


class Ray:
    """A Ray task per run.

    Args:
        address: of a running cluster; without one, a cluster of ``jobs`` workers is started
            on this machine.
    """

    def __init__(self, jobs: int | None = None, gpus: int = 0, address: str | None = None):
        try:
            import ray
        except ModuleNotFoundError as error:
            raise _missing('ray', 'ray') from error
        self._ray, self._gpus = ray, gpus
        _show_checkout()
        started = {} if address else dict(num_cpus=jobs or Local(gpus=gpus).jobs,
                                          include_dashboard=False)
        try:
            ray.init(address=address or 'local', log_to_driver=False, logging_level='ERROR',
                     runtime_env=dict(env_vars=dict(PYTHONPATH=os.environ['PYTHONPATH'])),
                     **started)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f'no Ray cluster: {_line(error)}') from error
        self.jobs = jobs or int(ray.cluster_resources()['CPU'])

    def submit(self, function: Callable[..., dict], *arguments) -> Future:
        # Whether to try again is the sweep's to decide.
        task = self._ray.remote(num_cpus=1, num_gpus=self._gpus, max_retries=0)(function)
        return task.remote(*arguments).future()

    def close(self) -> None:
        self._ray.shutdown()


def _show_checkout() -> None:
    """Let workers find what this process finds."""
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    os.environ['PYTHONPATH'] = os.pathsep.join(paths)


def _line(error: Exception) -> str:
    return ' '.join(str(error).split())[:200]


def _missing(package: str, executor: str) -> UserError:
    return UserError(f'--executor {executor} needs {package}: pip install {package}')
