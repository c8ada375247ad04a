"""Every mistake gets one line and a status that is not 0, and costs nothing."""
from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Outcome
from mmengine.fileio import LocalBackend
from mmengine.runner import Runner

import suite.components  # noqa: F401

from mmdet.models.dense_heads import RPNHead  # isort: skip
from mmdet.models.necks import FPN  # isort: skip

ANNOTATIONS = 'coco/annotations/instances_train2017.json'
PICTURE = 'coco/train2017/000000000001.jpg'


@pytest.fixture
def spoilt(mini_root, tmp_path) -> Path:
    """A copy of the data to spoil."""
    return shutil.copytree(mini_root, tmp_path / 'data')


@pytest.fixture
def train(tool, trained, mini_root, tmp_path) -> Callable[..., Outcome]:
    """``train('upernet_ade20k', 'key=value', ..., resume=...)``, on data as they are: mini
    data would be made anew where something is missing."""
    def call(protocol: str, *options: str, data: Path = mini_root, **arguments) -> Outcome:
        arguments = {'data-root': data, 'work-dir': tmp_path / 'run'} | arguments
        return tool('train', trained(protocol) / f'{protocol}.py',
                    '--cfg-options', 'mini=False', *options,
                    *(text for name, value in arguments.items() for text in (f'--{name}', value)))
    return call


def record(work_dir: Path) -> dict:
    return json.loads((work_dir / 'record.json').read_text())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def rename_category(path: Path) -> None:
    path.write_text(path.read_text().replace('"square"', '"pentagon"'))


# Data

@pytest.mark.parametrize('spoil, file, says', [
    (shutil.rmtree, 'coco', ('coco/ is missing', 'and train2017', '--mini', '--data-root')),
    (Path.unlink, ANNOTATIONS, ('cannot read', ANNOTATIONS, '--mini')),
    (truncate, ANNOTATIONS, (ANNOTATIONS, 'truncated')),
    (rename_category, ANNOTATIONS, ('lacks the categories square', 'pentagon')),
    (Path.unlink, PICTURE, ('1 of 8 images', 'missing', PICTURE)),
    (lambda path: path.write_bytes(b''), PICTURE, ('1 of 8 images', 'empty (0 bytes)', PICTURE)),
    (truncate, PICTURE.replace('train2017', 'val2017').replace('000001', '500001'),
     ('truncated', 'val2017/000000500001.jpg')),
])
def test_broken_data(train, spoilt, tmp_path, spoil, file, says):
    spoil(spoilt / file)
    line = train('maskrcnn_coco', data=spoilt).complaint()
    assert all(text in line for text in says), line
    assert record(tmp_path / 'run')['status'] == 'failed'
    assert record(tmp_path / 'run')['error'] == f'UserError: {line}'


@pytest.mark.parametrize('workers', [0, 2])
def test_broken_picture_in_a_worker(train, spoilt, tmp_path, workers):
    for picture in (spoilt / 'ade/ADEChallengeData2016/images/training').iterdir():
        truncate(picture)
    line = train('upernet_ade20k', f'train_dataloader.num_workers={workers}',
                 data=spoilt).complaint()
    assert line.startswith('image /') and 'truncated' in line
    assert record(tmp_path / 'run')['error'] == f'UserError: {line}'


def test_broken_data_in_a_test(tool, trained, spoilt, tmp_path):
    run = trained('upernet_ade20k')
    shutil.rmtree(spoilt / 'ade/ADEChallengeData2016/annotations/validation')
    line = tool('test', run / 'upernet_ade20k.py', run / 'iter_2.pth', '--data-root', spoilt,
                '--work-dir', tmp_path / 'test', '--cfg-options', 'mini=False').complaint()
    assert 'annotations/validation is missing' in line and '--mini' in line
    assert record(tmp_path / 'test')['status'] == 'failed'


# Names

@pytest.mark.parametrize('arguments, says', [
    (('configs/dilateformer/maskrcn_coco.py',), 'did you mean configs/dilateformer/maskrcnn_coco'),
    (('maskrcnn_coco', '--backbone', 'swin_tinny'), 'did you mean swin_tiny'),
    (('maskrcnn_coco',), 'name one with --backbone'),
    (('maskrcnn_coco', '--backbone', 'swin_tiny', '--cfg-options', 'model.backbone.arch=smal'),
     "no arch 'smal'; did you mean small"),
    (('maskrcnn_coco', '--backbone', 'timm/convnext_tinny'), 'convnext_tiny'),
    (('maskrcnn_coco', '--backbone', 'swin_tiny', '--cfg-options', 'model.bakbone.arch=small'),
     'backbone'),
])
def test_unknown_names(tool, arguments, says):
    for name in ('train', 'print_config'):
        assert says in tool(name, *arguments).complaint()


# Checkpoints

@pytest.fixture(params=['missing', 'corrupted', 'of another network', 'no checkpoint'])
def bad_checkpoint(request, trained, tmp_path) -> tuple[Path, str]:
    """A checkpoint that does not serve Mask R-CNN, and what is to be said of it."""
    path, good = tmp_path / 'bad.pth', trained('upernet_ade20k') / 'iter_2.pth'
    if request.param == 'missing':
        return path, 'checkpoint not found'
    if request.param == 'corrupted':
        path.write_bytes(good.read_bytes()[:10000])
        return path, 'corrupted or not a PyTorch checkpoint'
    if request.param == 'no checkpoint':
        path.write_text('<html>404</html>')
        return path, 'corrupted or not a PyTorch checkpoint'
    content = torch.load(good, weights_only=False)
    for name in list(content['state_dict']):
        if name.startswith('backbone.stages.2'):
            del content['state_dict'][name]
    torch.save(content, path)
    return path, 'does not fit'


@pytest.mark.parametrize('way', ['test', 'predict', 'resume', 'load_from', 'init_cfg'])
def test_bad_checkpoint(tool, train, trained, mini_root, tmp_path, bad_checkpoint, way):
    path, says = bad_checkpoint
    run = trained('maskrcnn_coco')
    if way == 'resume':
        outcome = train('maskrcnn_coco', resume=path)
    elif way == 'load_from':
        outcome = train('maskrcnn_coco', f'load_from={path}')
    elif way == 'init_cfg':
        init = dict(type='Pretrained', checkpoint=str(path))
        outcome = train('maskrcnn_coco', f'model.backbone.init_cfg={init}')
    else:
        last = {'predict': [mini_root / PICTURE, '--out'], 'test': ['--work-dir']}[way]
        outcome = tool(way, run / 'maskrcnn_coco.py', path, *last, tmp_path / 'out')
    line = outcome.complaint()
    assert says in line and str(path) in line


def test_resume_needs_more_than_weights(train, trained, tmp_path):
    best = next(trained('upernet_ade20k').glob('best.pth'))
    line = train('upernet_ade20k', resume=best).complaint()
    assert 'lacks optimizer' in line and f'load_from={best}' in line


def test_nothing_to_resume(tool, trained, mini_root, tmp_path):
    line = tool('train', trained('upernet_ade20k') / 'upernet_ade20k.py', '--work-dir',
                tmp_path, '--data-root', mini_root, '--resume').complaint()
    assert line.startswith(f'nothing to resume in {tmp_path}')


# Disks

@pytest.mark.parametrize('name', ['train', 'test', 'predict'])
@pytest.mark.parametrize('folder', ['file/run', '/proc/run'])
def test_unwritable(tool, trained, mini_root, tmp_path, name, folder):
    (tmp_path / 'file').write_text('in the way')
    run = trained('maskrcnn_coco')
    what = {'train': [], 'test': [run / 'epoch_1.pth'],
            'predict': [run / 'epoch_1.pth', mini_root / PICTURE]}[name]
    argument = '--out' if name == 'predict' else '--work-dir'
    line = tool(name, run / 'maskrcnn_coco.py', *what, '--data-root', mini_root,
                argument, tmp_path / folder).complaint()
    assert f'{tmp_path / folder} is not writable' in line and line.endswith(argument)


def test_disk_full_while_saving(train, trained, tmp_path, monkeypatch):
    """The second checkpoint breaks off half written; the first one stays in charge."""
    put = LocalBackend.put

    def fill(backend, content, path):
        if 'iter_2' not in str(path):
            return put(backend, content, path)
        put(backend, content[:1000], path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    monkeypatch.setattr(LocalBackend, 'put', fill)
    line = train('upernet_ade20k').complaint()
    run = tmp_path / 'run'
    assert f'could not save {run}/iter_2.pth (the disk is full)' in line and '--resume' in line
    assert sorted(path.name for path in run.glob('*.p*t*')) == ['iter_1.pth']
    assert (run / 'last_checkpoint').read_text() == f'{run}/iter_1.pth'
    assert record(run)['status'] == 'failed'


def test_files_cannot_grow(train, trained, tmp_path):
    """A real limit, met by whatever is written first: no checkpoint fits."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
            line = train('upernet_ade20k').complaint()
            status = 0 if 'could not save' in line and 'large' in line else 3
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    run = tmp_path / 'run'
    assert not list(run.glob('*.pth')) and not list(run.glob('*.part'))
    assert record(run)['status'] == 'failed'


def test_full_disk_outside_of_checkpoints(train, monkeypatch):
    """What else fails to be written ends in a line, too."""
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(Runner, 'dump_config', full)
    assert 'No space left on device' in train('upernet_ade20k').complaint()


def test_a_new_run_loses_nothing(train, trained, tmp_path):
    """An earlier run's results step aside, even of a run that fails at once."""
    run = shutil.copytree(trained('upernet_ade20k'), tmp_path / 'run')
    before = record(run)
    assert 'missing' in train('upernet_ade20k', data=tmp_path / 'nowhere').complaint()
    aside, = (run / 'earlier').iterdir()
    assert record(aside) == before and {path.name for path in aside.iterdir()} >= {
        'iter_1.pth', 'iter_2.pth', 'best.pth', 'best.json', 'last_checkpoint'}


# Lost losses

def ruined(method, after: int, ruin: Callable):
    """``method``, whose results are ruined from call number ``after`` of training on."""
    calls = []

    def call(self, *arguments, **options):
        result = method(self, *arguments, **options)
        calls.extend([None] * self.training)
        return ruin(result) if self.training and len(calls) > after else result
    return call


@pytest.mark.parametrize('cls, method, ruin, says', [
    (FPN, 'forward', lambda maps: tuple(m * float('nan') for m in maps), 'first in module neck;'),
    (RPNHead, 'loss_by_feat',
     lambda losses: losses | dict(loss_rpn_cls=[loss * float('inf')
                                                for loss in losses['loss_rpn_cls']]),
     'first in loss loss_rpn_cls;'),
])
def test_lost_loss(train, tmp_path, monkeypatch, cls, method, ruin, says):
    """It stops in the second epoch; the checkpoint of the first one is left."""
    monkeypatch.setattr(cls, method, ruined(getattr(cls, method), 2, ruin))
    line = train('maskrcnn_coco', 'train_cfg.max_epochs=2').complaint()
    run = tmp_path / 'run'
    assert line.startswith('the loss became ') and 'at epoch 2, iteration 3' in line
    assert says in line and f'last good checkpoint: {run}/epoch_1.pth' in line
    assert record(run)['status'] == 'failed' and record(run)['error'].startswith('NonFiniteLoss')
    weights = torch.load(run / 'epoch_1.pth', weights_only=False)['state_dict']
    assert all(value.isfinite().all() for value in weights.values())


def at(monkeypatch, event: str, iteration: int, act: Callable[[Runner], None]) -> None:
    """Let something happen just before an event of a run."""
    call_hook = Runner.call_hook

    def call(runner, name, **options):
        if name == event and runner.iter == iteration:
            act(runner)
        call_hook(runner, name, **options)
    monkeypatch.setattr(Runner, 'call_hook', call)


@pytest.mark.parametrize('event, iteration, says', [
    ('before_train_iter', 1, 'the loss became nan at iteration 2; first in parameter '),
    ('after_train_iter', 1, ''),
])
def test_lost_weights(train, tmp_path, monkeypatch, event, iteration, says):
    """Gradients may be lost where the loss was not yet."""
    def lose(runner: Runner) -> None:
        runner.model.decode_head.conv_seg.bias.data.fill_(float('nan'))
    at(monkeypatch, event, iteration, lose)
    line = train('upernet_ade20k').complaint()
    assert line.startswith(says) and 'decode_head.conv_seg.bias' in line
    assert [path.name for path in (tmp_path / 'run').glob('*.pth')] == ['iter_1.pth']


# Ctrl-C

@pytest.fixture
def ctrl_c():
    """Ctrl-C interrupts, also where the tests themselves run in the background, ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupted(train, tmp_path, monkeypatch, ctrl_c):
    at(monkeypatch, 'after_train_iter', 2, lambda runner: signal.raise_signal(signal.SIGINT))
    outcome = train('maskrcnn_coco', 'train_cfg.max_epochs=2', 'train_cfg.val_interval=1')
    run = tmp_path / 'run'
    assert outcome.status == 130 and 'Traceback' not in outcome.err
    assert outcome.err.startswith('\ninterrupted: at epoch 2, iteration 3; saved up to ')
    assert f'{run}/epoch_1.pth' in outcome.err and '--resume' in outcome.err
    assert record(run)['status'] == 'interrupted' and record(run)['metrics']


@pytest.mark.parametrize('method, says', [
    ('build_train_loop', 'before training started'),
    ('call_hook', 'at epoch 1, iteration 1; no checkpoint was saved yet'),
])
def test_interrupted_early(train, monkeypatch, method, says):
    real = getattr(Runner, method)

    def press(runner, what, **options):
        if what in ('before_train_iter', runner._train_loop):
            raise KeyboardInterrupt
        return real(runner, what, **options)
    monkeypatch.setattr(Runner, method, press)
    outcome = train('maskrcnn_coco')
    assert outcome.status == 130 and outcome.err == f'\ninterrupted: {says}\n'


@pytest.mark.slow
def test_interrupted_with_workers(trained, mini_root, tmp_path):
    """A terminal's Ctrl-C reaches the workers too: they go in silence."""
    tool = Path(__file__).parents[1] / 'tools/train.py'
    run = subprocess.Popen(
        [sys.executable, tool, trained('upernet_ade20k') / 'upernet_ade20k.py', '--work-dir',
         tmp_path, '--data-root', mini_root, '--cfg-options', 'train_dataloader.num_workers=2',
         'train_cfg.max_iters=1000', 'train_cfg.val_interval=1000'],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (tmp_path / 'iter_3.pth').exists():
        assert run.poll() is None
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGINT)
    err = run.communicate(timeout=60)[1]
    assert run.returncode == 130 and 'Traceback' not in err
    assert '\ninterrupted: at iteration ' in err and '--resume goes on from there' in err


def test_a_missing_package_is_one_line(capfd):
    def main():
        import no_such_package  # noqa: F401

    from suite.cli import guard
    assert guard(main) == 2
    err = capfd.readouterr().err
    assert err.startswith('error: no_such_package is not installed in ') and err.count('\n') == 1
    assert 'tools/env.sh' in err


def test_a_missing_file_of_ours_is_no_mistake_of_the_users():
    def main():
        import suite.no_such_file  # noqa: F401

    from suite.cli import guard
    with pytest.raises(ModuleNotFoundError):
        guard(main)
