"""A sweep runs every cell once, whatever happened before."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from backbones import UserError
from suite import sweep
from suite.sweep import Cell, Settings, cells, table

SETTINGS = Settings(mini=True)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Replaces training by the writing of a record; returns what was started."""
    started = []

    def run(words, **_):
        folder = Path(words[words.index('--work-dir') + 1])
        started.append((folder.parent.name, '--resume' in words))
        broken = folder.parent.name == 'resnet34'
        cell = Cell(folder.parent.name, 'maskrcnn_coco')
        record = dict(status='failed', error='UserError: no disk') if broken else dict(
            status='completed', config_hash=sweep.config_hash(cell, SETTINGS),
            parameters=12_345_678, metrics={'coco/bbox_mAP': 0.5, 'coco/segm_mAP': 0.25},
            wall_seconds=61.2, history=[dict(iteration=300)])
        (folder / 'record.json').write_text(json.dumps(record))
        return type('Done', (), dict(returncode=int(broken)))

    monkeypatch.setattr(sweep.subprocess, 'run', run)
    return started


def test_all_combinations():
    assert cells(['a', 'b'], ['p'], [0, 1]) == [Cell('a', 'p', 0), Cell('b', 'p', 0),
                                               Cell('a', 'p', 1), Cell('b', 'p', 1)]
    assert cells(['timm/a'], ['p'], [3])[0].folder(sweep.ROOT).name == 'p_seed3'
    assert cells(['timm/a'], ['p'], [3])[0].folder(sweep.ROOT).parent.name == 'timm_a'


def test_no_cell_runs_twice(fake, tmp_path):
    todo = cells(['resnet18', 'resnet34', 'resnet50'], ['maskrcnn_coco'], [0])
    done = dict(sweep.sweep(todo, SETTINGS, tmp_path, jobs=2))
    assert sorted(fake) == [('resnet18', False), ('resnet34', False), ('resnet50', False)]
    assert done[todo[1]]['error'] == 'UserError: no disk'
    assert sweep.line(todo[1], done[todo[1]]) == (
        'resnet34 maskrcnn_coco seed 0  failed: UserError: no disk')
    assert sweep.line(todo[0], done[todo[0]]) == (
        'resnet18 maskrcnn_coco seed 0  box mAP 0.500  mask mAP 0.250  in 1:01')
    fake.clear()
    dict(sweep.sweep(todo, SETTINGS, tmp_path, jobs=1))
    assert fake == [('resnet34', False)]


def test_a_cell_of_other_settings_runs_again(fake, tmp_path):
    todo = cells(['resnet18'], ['maskrcnn_coco'], [0])
    dict(sweep.sweep(todo, SETTINGS, tmp_path, jobs=1))
    dict(sweep.sweep(todo, Settings(mini=True, amp=True), tmp_path, jobs=1))
    assert fake == [('resnet18', False), ('resnet18', False)]


def test_what_was_broken_off_goes_on(fake, tmp_path):
    cell, = todo = cells(['resnet18'], ['maskrcnn_coco'], [0])
    folder = cell.folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / 'last_checkpoint').write_text('epoch_2.pth')
    (folder / 'record.json').write_text(json.dumps(
        dict(status='running', config_hash=sweep.config_hash(cell, SETTINGS))))
    dict(sweep.sweep(todo, SETTINGS, tmp_path, jobs=1))
    assert fake == [('resnet18', True)]


def test_table():
    def record(box, mask):
        return dict(status='completed', parameters=12_345_678, wall_seconds=61.2,
                    metrics={'coco/bbox_mAP': box, 'coco/bbox_mAP_50': 0.9, 'coco/segm_mAP': mask},
                    history=[dict(iteration=100), dict(iteration=300)])
    done = {Cell('b', 'p'): record(0.5, 0.25), Cell('a', 'p'): record(0.75, 0.125),
            Cell('c', 'p'): dict(status='failed')}
    assert table(done).splitlines() == [
        'protocol p, seed 0', '',
        '| backbone | parameters | box mAP | mask mAP | iterations | seconds |',
        '|---|---|---|---|---|---|',
        '| a | 12.3 M | 0.750 | 0.125 | 300 | 61 |',
        '| b | 12.3 M | 0.500 | 0.250 | 300 | 61 |']
    with pytest.raises(UserError, match='no cell was completed'):
        table({Cell('c', 'p'): dict(status='failed')})


def test_an_unknown_backbone_is_named_before_anything_runs(fake, tmp_path):
    todo = cells(['resnet18', 'resnet19'], ['maskrcnn_coco'], [0])
    with pytest.raises(UserError, match='resnet19'):
        dict(sweep.sweep(todo, SETTINGS, tmp_path, jobs=1))
    assert fake == []
