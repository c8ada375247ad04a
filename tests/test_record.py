"""The record of a run says what, how, on what and with which result."""
from __future__ import annotations

import json
import re
import shlex
import sys

import pytest
from conftest import TINY

from backbones.dilateformer import DilateFormer
from suite import config, facts, flags
from suite.record import VERSION, Record

FACTS = {'task', 'status', 'command', 'started', 'config_hash', 'commit', 'versions', 'device',
         'backbone', 'protocol', 'seed', 'parameters', 'metrics', 'history', 'wall_seconds',
         'peak_memory', 'mini', 'world_size', 'version', 'family', 'pretraining', 'schedule',
         'macs', 'backbone_parameters', 'settings_hash', 'images_per_second', 'precision'}


def read(work_dir) -> dict:
    return json.loads((work_dir / 'record.json').read_text())


def test_training(trained):
    record = read(trained('upernet_ade20k'))
    assert record.keys() >= FACTS | {'effective_batch', 'resumed'}
    assert record['version'] == VERSION == 2
    assert (record['family'], record['pretraining']) == ('DilateFormer', 'none')
    assert record['schedule'] == '2 iterations, batch 2'
    assert 0.01 < record['images_per_second'] < 100
    assert (record['task'], record['status'], record['mini']) == ('train', 'completed', True)
    assert (record['protocol'], record['seed']) == ('upernet_ade20k', 0)
    assert (record['effective_batch'], record['world_size']) == (2, 1)
    assert set(record['metrics']) == {'aAcc', 'mIoU', 'mAcc'}
    assert record['history'] == [dict(epoch=0, iteration=2, **record['metrics'])]
    assert re.fullmatch(r'[0-9a-f]{40}(\+changes)?|unknown', record['commit'])
    assert record['versions']['torch'].startswith('2.')
    assert 'missing' not in record['versions'].values()
    net = DilateFormer(TINY)
    assert record['backbone_parameters'] == sum(p.numel() for p in net.parameters())
    assert record['parameters'] > record['backbone_parameters']
    assert 0 < record['macs']['backbone'] < record['macs']['model']
    assert 100 < record['peak_memory']['mib'] < 100_000
    assert 0 < record['wall_seconds'] < 600


def test_testing(tool, trained, mini_root, tmp_path):
    """The same checkpoint, tested: the same metrics, configuration and parameters."""
    work_dir = trained('upernet_ade20k')
    arguments = ['--data-root', mini_root, '--work-dir', tmp_path]
    outcome = tool('test', work_dir / 'upernet_ade20k.py', work_dir / 'iter_2.pth', *arguments)
    assert outcome.status == 0, outcome.err
    tested, before = read(tmp_path), read(work_dir)
    assert tested.keys() >= FACTS | {'checkpoint', 'tta'}
    assert (tested['task'], tested['status']) == ('test', 'completed')
    for fact in ('metrics', 'config_hash', 'parameters', 'backbone', 'protocol', 'mini', 'commit',
                 'schedule', 'pretraining', 'effective_batch', 'macs'):
        assert tested[fact] == before[fact], fact
    words = shlex.split(tested['command'])
    assert words[0] == sys.executable and words[1].endswith('tools/test.py')
    assert words[-1] == str(tmp_path)


def test_a_checkpoint_without_a_record_is_of_unknown_training(tmp_path):
    (tmp_path / 'record.json').write_text('{"schedule": "12 epochs, batch 16", ')
    assert facts.trained(tmp_path / 'best.pth') == dict(
        pretraining='unknown', schedule='unknown', effective_batch=None)


def test_words_for_schedule_and_pretraining(tiny):
    assert facts.schedule(tiny('maskrcnn_coco'), 16) == '1 epochs, batch 16'
    cfg = tiny('upernet_ade20k', {'subset': 0.125, 'budget': '800 images'})
    assert facts.schedule(cfg, 8) == '800 images, batch 8, 0.125 of the data'
    cfg.load_from = '/weights/swin.pth'
    assert facts.pretraining(cfg) == 'swin.pth'
    cfg.pretraining = 'ImageNet-1K'
    assert facts.pretraining(cfg) == 'ImageNet-1K'


def test_resumed_record_goes_on(tmp_path):
    first = Record(tmp_path, 'train', protocol='p')
    first._started -= 100
    for iteration in (10, 20, 30):
        first.measured(dict(mIoU=iteration), iteration=iteration)
    second = Record(tmp_path, 'train', resumed=True, protocol='p')
    second.rewind(20)
    assert [entry['mIoU'] for entry in read(tmp_path)['history']] == [10]
    second.measured(dict(mIoU=21.), iteration=20)
    second.close('completed')
    assert read(tmp_path)['metrics'] == dict(mIoU=21.)
    assert read(tmp_path)['wall_seconds'] >= 100
    assert read(Record(tmp_path, 'train').path.parent)['history'] == []


@pytest.fixture
def fingerprint(tiny):
    return lambda *arguments, **settings: config.fingerprint(tiny(*arguments, **settings))


def test_hash_ignores_where(fingerprint, tmp_path, mini_root):
    here = fingerprint('maskrcnn_coco')
    assert re.fullmatch('[0-9a-f]{16}', here)
    assert here == fingerprint('maskrcnn_coco', data_root=str(tmp_path / 'Tübingen "data"'))
    assert here == fingerprint('maskrcnn_coco', dict(work_dir='x', launcher='pytorch', resume=True,
                                                     load_from='y.pth'))


@pytest.mark.parametrize('option', [
    {'model.backbone.drop_path_rate': 0.1}, {'optim_wrapper.optimizer.lr': 1e-3},
    {'randomness.seed': 1}, {'train_cfg.max_epochs': 2}, {'train_dataloader.batch_size': 3},
    {'train_dataloader.dataset.ann_file': 'annotations/instances_val2017.json'}])
def test_hash_knows_what_decides(fingerprint, option):
    assert fingerprint('maskrcnn_coco') != fingerprint('maskrcnn_coco', option)


def test_hash_knows_amp(tiny):
    cfg = tiny('maskrcnn_coco')
    before = config.fingerprint(cfg)
    flags.apply(cfg, amp=True)
    assert config.fingerprint(cfg) != before


@pytest.mark.parametrize('protocol', ['maskrcnn_coco', 'upernet_ade20k'])
def test_hash_of_a_dumped_config(trained, tmp_path, protocol):
    work_dir = trained(protocol)
    dumped = str(work_dir / f'{protocol}.py')
    for settings in ({}, dict(data_root=str(tmp_path))):
        again = config.fingerprint(config.load(dumped, **settings))
        assert again == read(work_dir)['config_hash']
