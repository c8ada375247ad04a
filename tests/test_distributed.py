"""Two processes on a CPU: they train without an idle parameter, and measure what one
process measures."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from suite import config, run

TORCHRUN = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']


def together(tool: str, *arguments) -> subprocess.CompletedProcess:
    """Run a tool in two processes."""
    return subprocess.run(
        [*TORCHRUN, str(config.ROOT / f'tools/{tool}.py'), *map(str, arguments)],
        capture_output=True, text=True, timeout=500, env={**os.environ, 'OMP_NUM_THREADS': '1'})


def record(work_dir: Path) -> dict:
    return json.loads((work_dir / 'record.json').read_text())


def checkpoint(work_dir: Path) -> Path:
    return Path((work_dir / 'last_checkpoint').read_text().strip())


@pytest.mark.slow
@pytest.mark.parametrize('protocol', ['cascade_coco', 'upernet_ade20k'])
def test_two_processes_train_and_evaluate(protocol, tiny, tmp_path):
    tiny(protocol).dump(tmp_path / 'tiny.py')
    work_dir = tmp_path / 'run'
    done = together('train', tmp_path / 'tiny.py', '--work-dir', work_dir)
    assert done.returncode == 0, done.stderr[-3000:]
    told = record(work_dir)
    assert (told['status'], told['world_size'], told['effective_batch']) == ('completed', 2, 4)
    assert done.stdout.count('2 processes') == 1
    # Four images are one step of two processes in an epoch; iterations stay two.
    state = torch.load(checkpoint(work_dir), weights_only=False)
    assert state['meta']['iter'] == (2 if protocol.startswith('upernet') else 1)
    assert not [name for name in state['state_dict'] if name.startswith('module.')]
    # The stem's batch norms saw other images in either process.
    alone = run.test(tiny(protocol), str(checkpoint(work_dir)), str(tmp_path / 'alone'))
    assert alone == told['metrics']


@pytest.mark.slow
@pytest.mark.parametrize('protocol', ['maskrcnn_coco', 'upernet_ade20k'])
def test_two_processes_measure_what_one_measures(protocol, trained, tmp_path):
    work_dir = trained(protocol)
    done = together('test', next(work_dir.glob('*.py')), checkpoint(work_dir),
                    '--work-dir', tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert record(tmp_path)['world_size'] == 2
    assert record(tmp_path)['metrics'] == record(work_dir)['metrics']


@pytest.mark.slow
def test_a_mistake_ends_all_processes_with_its_line(tmp_path):
    done = together('train', 'swin/maskrcnn_coco', '--data-root', tmp_path / 'gone',
                    '--work-dir', tmp_path / 'run')
    assert done.returncode != 0
    assert 'error: data folder' in done.stderr and '--mini' in done.stderr
