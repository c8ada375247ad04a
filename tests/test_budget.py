"""Budgets: exactly the images or the time that was asked for, under one learning-rate curve,
on images that are the same for everybody."""
from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.registry import DATASETS
from mmengine.runner import Runner

from backbones.errors import UserError
from histology.errors import DataError
from histology.share import take_share
from suite import budget, config, run

PROTOCOLS = 'maskrcnn_coco', 'upernet_ade20k', 'upernet_kumar'
ALL = {'train_dataloader.dataset.indices': None}  # 8 images or more, in batches of 2


class Steps(list):
    """The images and the factor of the learning rate of every step that is trained;
    ``stop`` at an iteration is Ctrl-C."""

    stop = None

    def note(self, runner: Runner, data_batch: dict) -> None:
        if runner.iter == self.stop:
            raise KeyboardInterrupt
        paths = [sample.img_path for sample in data_batch['data_samples']]
        self.append((paths, budget.rate(runner.train_loop.share)))

    def check_rates(self, runner: Runner) -> None:
        for group in runner.optim_wrapper.optimizer.param_groups:
            assert group['lr'] == pytest.approx(group['initial_lr'] * self[-1][1])

    @property
    def images(self) -> list[str]:
        return [path for paths, _ in self for path in paths]

    @property
    def rates(self) -> list[float]:
        return [rate for _, rate in self]


@pytest.fixture
def steps(monkeypatch) -> Steps:
    seen, call_hook = Steps(), Runner.call_hook

    def listen(runner, name, **options):
        if name == 'before_train_iter':
            seen.note(runner, options['data_batch'])
        if name == 'after_train_iter':
            seen.check_rates(runner)
        call_hook(runner, name, **options)
    monkeypatch.setattr(Runner, 'call_hook', listen)
    return seen


@pytest.fixture
def clock(monkeypatch) -> None:
    """Every step takes one second."""
    now = iter(range(10 ** 6))
    monkeypatch.setattr(budget, 'monotonic', lambda: next(now))


def record(work_dir: Path) -> dict:
    return json.loads((work_dir / 'record.json').read_text())


def last(work_dir: Path) -> dict:
    return torch.load((work_dir / 'last_checkpoint').read_text(), weights_only=False)


# Images

@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_images_in_whole_steps(tiny, steps, tmp_path, protocol):
    cfg = tiny(protocol, ALL)
    budget.apply(cfg, '5images', 0.5)
    run.train(cfg, str(tmp_path))
    assert [len(paths) for paths, _ in steps] == [2, 2, 2]
    assert steps.rates == [budget.rate(share) for share in (0, 1 / 3, 2 / 3)]
    assert last(tmp_path)['meta']['iter'] == 3
    told = record(tmp_path)
    assert told['status'] == 'completed' and told['metrics']
    assert [entry['iteration'] for entry in told['history']] == [3], 'one evaluation, at the end'
    resolved = Config.fromfile(next(tmp_path.glob('*.py')))
    assert (resolved.budget, resolved.subset) == ('5 images', 0.5)
    assert resolved.train_cfg == dict(type='ImageBudgetLoop', images=5)


def test_resumed_run_ends_as_if_nothing_had_been(tiny, steps, tmp_path):
    def train(name: str, **how) -> Path:
        cfg = tiny('maskrcnn_coco', ALL | {'val_cfg': None, 'val_dataloader': None,
                                           'val_evaluator': None})
        budget.apply(cfg, '6images')
        cfg.default_hooks.checkpoint.interval = 1
        run.train(cfg, str(tmp_path / name), **how)
        return tmp_path / name
    whole = last(train('whole'))
    steps.stop = 2
    with pytest.raises(KeyboardInterrupt):
        train('later')
    steps.stop = None
    resumed = last(train('later', resume='auto'))
    assert steps.images[:6] == steps.images[6:], 'the same images, each batch once'
    assert steps.rates[:3] == steps.rates[3:]
    for name, weight in whole['state_dict'].items():
        assert torch.equal(weight, resumed['state_dict'][name]), name


# Time

def test_time_ends_at_its_share(tiny, steps, clock, tmp_path, capsys):
    cfg = tiny('upernet_ade20k', ALL)
    budget.apply(cfg, '4seconds')
    steps.stop = 2
    with pytest.raises(KeyboardInterrupt):
        run.train(cfg, str(tmp_path))
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith('iter ')]
    assert [line.split()[1] for line in shown] == ['1/~4', '2/~4']

    steps.stop = None
    cfg = tiny('upernet_ade20k', ALL)
    budget.apply(cfg, '4seconds')
    run.train(cfg, str(tmp_path), resume='auto')
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith('iter ')]
    assert [line.split()[1] for line in shown] == ['3/~4', '4/4']
    assert steps.rates == [budget.rate(share) for share in (0, 1 / 4, 2 / 4, 3 / 4)]
    assert last(tmp_path)['meta']['iter'] == 4
    told = record(tmp_path)
    assert [entry['iteration'] for entry in told['history']] == [4]

    run.train(cfg, str(tmp_path), resume='auto')
    assert len(steps) == 4, 'a used budget is used'
    assert record(tmp_path)['history'] == told['history']


@pytest.fixture
def loop():
    """Makes a loop of a run that is not there."""
    def make(kind, accumulated: int = 1, **settings):
        cfg = Config(dict(train_dataloader=dict(batch_size=4),
                          optim_wrapper=dict(accumulative_counts=accumulated)))
        runner = SimpleNamespace(cfg=cfg, visualizer=SimpleNamespace(),
                                 message_hub=MessageHub('budget'))
        data = SimpleNamespace(dataset=SimpleNamespace(metainfo={}))
        return kind(runner, data, **settings)
    return make


def test_accumulated_images(loop):
    assert loop(budget.ImageBudgetLoop, images=21).max_iters == 6
    assert loop(budget.ImageBudgetLoop, accumulated=3, images=25).max_iters == 9
    with pytest.raises(UserError, match='11 images is less than one step of 12'):
        loop(budget.ImageBudgetLoop, accumulated=3, images=11)


def test_time_ends_with_a_whole_step(loop):
    timed, expected = loop(budget.TimeBudgetLoop, accumulated=3, seconds=10), []
    assert timed.estimated and timed.max_iters % 3 == 0
    for _ in range(6):
        timed._spend(2.5)
        timed._iter += 1
        expected.append((timed.max_iters, timed.estimated))
    assert expected == [(4, True), (4, True), (4, True), (5, True), (6, True), (6, False)]


def test_rate():
    assert budget.rate(0) == pytest.approx(1e-3)
    assert budget.rate(0.025) == pytest.approx(0.5, abs=1e-3)
    assert budget.rate(budget.WARMUP) == 1
    assert budget.rate(0.525) == pytest.approx(0.5)
    assert budget.rate(0.99) < 1e-3 and budget.rate(1) == budget.rate(1.2) == 0


@pytest.mark.parametrize('text, words, loop', [
    ('800images', '800 images', dict(type='ImageBudgetLoop', images=800)),
    ('1.5kimages', '1500 images', dict(type='ImageBudgetLoop', images=1500)),
    ('90seconds', '90 seconds', dict(type='TimeBudgetLoop', seconds=90)),
    ('10minutes', '10 minutes', dict(type='TimeBudgetLoop', seconds=600)),
    ('1hour', '60 minutes', dict(type='TimeBudgetLoop', seconds=3600))])
def test_what_is_asked_for(tiny, text, words, loop):
    cfg = tiny('maskrcnn_coco')
    before = config.fingerprint(cfg)
    budget.apply(cfg)
    assert config.fingerprint(cfg) == before, 'no flags, no change'
    budget.apply(cfg, text)
    assert (cfg.budget, cfg.train_cfg) == (words, loop)
    assert config.fingerprint(cfg) != before


# The share of the data

def test_shares_are_nested():
    shares = [take_share(list(range(1001)), share) for share in (0.01, 0.1, 0.5, 1)]
    assert [len(some) for some in shares] == [10, 100, 500, 1001]
    for small, large in zip(shares, shares[1:]):
        assert set(small) < set(large) and small == sorted(small)
    assert abs(sum(shares[1]) / 100 - 500) < 100, 'from everywhere'


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_same_share_for_every_backbone_and_seed(tiny, protocol):
    def paths(cfg: Config, subset: float) -> list[str]:
        budget.apply(cfg, subset=subset)
        with config.scope(cfg):
            data = DATASETS.build({**cfg.train_dataloader.dataset, 'pipeline': []})
        return [data.get_data_info(i)['img_path'] for i in range(len(data))]
    one = tiny(protocol, ALL)
    other = tiny(protocol, ALL | {'randomness.seed': 5}, backbone='resnet18')
    everything, half = paths(one, 1), paths(one, 0.5)
    assert len(half) == len(everything) / 2 and set(half) < set(everything)
    assert paths(other, 0.5) == half
    with pytest.raises(DataError, match='0.1 of [0-9]+ images is 1, fewer than a batch of 2'):
        paths(one, 0.1)


# Mistakes

@pytest.mark.parametrize('text, subset, words', [
    ('10', None, 'is not a number of images or a time; write it like 800images'),
    ('tenminutes', None, 'write it like'),
    ('-5images', None, 'write it like'),
    ('0images', None, 'not a whole number'),
    ('2.5images', None, 'not a whole number'),
    ('0.5seconds', None, 'not a whole number'),
    ('1image', None, 'a budget of 1 images is less than one step of 2; raise --budget'),
    (None, 0, '--subset 0 is no share'),
    (None, 2, '--subset 2 is no share'),
    (None, float('nan'), '--subset nan is no share')])
def test_mistakes(tiny, text, subset, words):
    with pytest.raises(UserError, match=words):
        budget.apply(tiny('upernet_ade20k'), text, subset)


def test_foreign_data_sets_cannot_be_cut(tiny):
    cfg = tiny('maskrcnn_coco')
    cfg.train_dataloader.dataset.type = 'mmdet.CocoDataset'
    with pytest.raises(UserError, match='mmdet.CocoDataset cannot be cut'):
        budget.apply(cfg, subset=0.5)


def test_a_mistake_is_one_line(tool):
    line = tool('train', 'swin/maskrcnn_coco', '--mini', '--budget', '10').complaint()
    assert line.startswith("--budget '10' is not")


# Two processes

@pytest.mark.slow
@pytest.mark.parametrize('protocol, text', [('maskrcnn_coco', '7images'),
                                            ('upernet_ade20k', '3seconds')])
def test_two_processes_stop_together(tiny, tmp_path, protocol, text):
    from test_distributed import together
    tiny(protocol, ALL).dump(tmp_path / 'tiny.py')
    done = together('train', tmp_path / 'tiny.py', '--budget', text, '--subset', 0.75,
                    '--work-dir', tmp_path / 'run')
    assert done.returncode == 0, done.stderr[-3000:]
    told, kept = record(tmp_path / 'run'), last(tmp_path / 'run')
    assert (told['status'], told['effective_batch']) == ('completed', 4)
    assert [entry['iteration'] for entry in told['history']] == [kept['meta']['iter']]
    if text == '7images':
        assert kept['meta']['iter'] == 2
    else:
        assert kept['message_hub']['runtime_info'][budget.TimeBudgetLoop._KEY] >= 3
