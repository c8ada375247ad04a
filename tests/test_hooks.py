"""What happens around a run: killed and resumed, it ends as if nothing had been."""
from __future__ import annotations

import json
import os
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner

from suite import run

LONG = dict(
    maskrcnn_coco={'train_cfg.max_epochs': 2, 'model.backbone.drop_path_rate': 0.3},
    upernet_ade20k={'train_cfg.max_iters': 4, 'train_cfg.val_interval': 2,
                    'default_hooks.checkpoint.interval': 2,
                    'model.backbone.drop_path_rate': 0.3})


def killed(action: Callable[[], object], event: str, iteration: int) -> None:
    """Run ``action`` in a copy of this process that gets SIGKILL at an event."""
    child = os.fork()
    if child == 0:
        call_hook = Runner.call_hook

        def fatal(runner, name, **options):
            if name == event and runner.iter == iteration:
                os.kill(os.getpid(), signal.SIGKILL)
            call_hook(runner, name, **options)
        try:
            Runner.call_hook = fatal
            action()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def last(work_dir: Path) -> dict:
    return torch.load((work_dir / 'last_checkpoint').read_text(), weights_only=False)


def same(one, other) -> bool:
    """Equal to the last bit, NaN being equal to NaN."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


@pytest.fixture(scope='module')
def whole(mini_root, tmp_path_factory) -> dict[str, Path]:
    """Work dirs of runs that nothing disturbed."""
    from conftest import load_tiny
    done = {}
    for protocol, options in LONG.items():
        done[protocol] = tmp_path_factory.mktemp('whole')
        run.train(load_tiny(mini_root, protocol, options), str(done[protocol]))
    return done


@pytest.mark.parametrize('protocol, event, iteration', [
    ('maskrcnn_coco', 'after_train_iter', 2),     # in the middle of the second epoch
    ('maskrcnn_coco', 'before_val_epoch', 4),     # all is trained, the last evaluation is not
    ('upernet_ade20k', 'after_train_iter', 2),
    ('upernet_ade20k', 'before_save_checkpoint', 3),
])
def test_killed_and_resumed(tiny, whole, tmp_path, protocol, event, iteration):
    killed(lambda: run.train(tiny(protocol, LONG[protocol]), str(tmp_path)), event, iteration)
    assert json.loads((tmp_path / 'record.json').read_text())['status'] == 'running'
    run.train(tiny(protocol, LONG[protocol]), str(tmp_path), resume='auto')

    for part in ('state_dict', 'optimizer', 'param_schedulers'):
        assert same(last(whole[protocol])[part], last(tmp_path)[part]), part
    records = [json.loads((folder / 'record.json').read_text())
               for folder in (whole[protocol], tmp_path)]
    assert records[0]['metrics'] and same(records[0]['metrics'], records[1]['metrics'])
    assert same(records[0]['history'], records[1]['history'])
    assert [record['resumed'] for record in records] == [False, True]
    assert records[1]['status'] == 'completed'
    best = [json.loads((folder / 'best.json').read_text())
            for folder in (whole[protocol], tmp_path)]
    assert best[0] == best[1] and best[0].keys() == {'metric', 'value', 'epoch', 'iter'}


def test_resume_with_workers(tiny, tmp_path):
    """Batches that a worker had loaded ahead are not lost, nor drawn from other numbers."""
    options = LONG['upernet_ade20k'] | {'train_dataloader.num_workers': 1, 'val_cfg': None,
                                        'val_dataloader': None, 'val_evaluator': None}
    run.train(tiny('upernet_ade20k', options), str(tmp_path / 'whole'))
    run.train(tiny('upernet_ade20k', options), str(tmp_path / 'later'),
              resume=f'{tmp_path}/whole/iter_2.pth')
    assert same(last(tmp_path / 'whole')['state_dict'], last(tmp_path / 'later')['state_dict'])


def test_resume_of_a_completed_run_keeps_its_metrics(tiny, trained, tmp_path):
    work_dir = tmp_path / 'copy'
    shutil.copytree(trained('upernet_ade20k'), work_dir)
    before = json.loads((work_dir / 'record.json').read_text())
    run.train(tiny('upernet_ade20k'), str(work_dir), resume='auto')
    after = json.loads((work_dir / 'record.json').read_text())
    assert before['metrics'] and same(before['metrics'], after['metrics'])
    assert same(before['history'], after['history'])


def test_epochs_draw_different_numbers(whole):
    """Reseeding repeats a run, not an epoch."""
    log = next(whole['upernet_ade20k'].glob('*/vis_data/scalars.json'))
    losses = [json.loads(line).get('loss') for line in log.read_text().splitlines()]
    assert len({loss for loss in losses if loss}) == 4
