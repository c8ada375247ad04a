"""A sweep runs every cell once, whatever happened before and whatever happens meanwhile."""
from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from sweeping import HASH, counts, in_background, settings, started, sweep, wait_for

from backbones import UserError
from suite import config
from suite.facts import facts
from suite.sweep.cells import Cell, Settings, cells, command, hashes
from suite.sweep.driver import Sweep
from suite.sweep.executors import Local, Ray, Slurm
from suite.sweep.live import place
from suite.sweep.table import line, table


def test_all_combinations():
    assert cells(['a', 'b', 'a'], ['p'], [0, 1]) == [Cell('a', 'p', 0), Cell('b', 'p', 0),
                                                     Cell('a', 'p', 1), Cell('b', 'p', 1)]
    assert cells(['timm/a'], ['p'], [3])[0].folder(Path('x')) == Path('x/timm_a/p_seed3')


def test_no_cell_runs_twice(tmp_path):
    done = sweep(tmp_path, ['a', 'broken', 'c'], retries=0).done
    assert counts(tmp_path) == dict(a=1, broken=1, c=1)
    assert line(Cell('a', 'p'), done[Cell('a', 'p')]) == (
        'a p seed 0  box mAP 0.500  mask mAP 0.250  in 1:01')
    assert line(Cell('broken', 'p'), done[Cell('broken', 'p')]) == (
        'broken p seed 0  failed: UserError: no disk')
    again = sweep(tmp_path, ['a', 'broken', 'c'], retries=0)
    assert counts(tmp_path) == dict(a=1, broken=2, c=1)
    assert again.done == done | {Cell('broken', 'p'): again.done[Cell('broken', 'p')]}


def test_a_failed_run_is_repeated_from_its_checkpoint(tmp_path):
    done = sweep(tmp_path, ['flaky', 'broken', 'a'], retries=2).done
    assert [start[:2] for start in started(tmp_path) if start[0] == 'flaky'] == [
        ['flaky', False], ['flaky', True]]
    assert counts(tmp_path) == dict(flaky=2, broken=3, a=1)
    assert [record['status'] for record in done.values()].count('completed') == 2


def test_a_run_without_a_word_gets_one(tmp_path):
    done = sweep(tmp_path, ['mute', 'shot'], retries=0).done
    assert done[Cell('mute', 'p')]['error'] == 'out of words (exit status 1)'
    assert done[Cell('shot', 'p')]['error'] == 'killed by SIGKILL'


def test_a_cell_of_other_settings_runs_again(tmp_path):
    sweep(tmp_path, ['a'])
    cell = Cell('a', 'p')
    executor = Local(1)
    course = Sweep([cell], {cell: 'another'}, settings(tmp_path), tmp_path, executor, retries=0)
    while not course.over:
        course.step()
    executor.close()
    assert [start[:2] for start in started(tmp_path)] == [['a', False]] * 2
    assert 'of other settings' in course.done[cell]['error']


def test_a_killed_sweep_leaves_nothing_behind_and_goes_on(tmp_path):
    names = ['a', 'slow1', 'slow2', 'b', 'c']
    process = in_background(tmp_path, names)
    wait_for(lambda: {'slow1', 'slow2'} <= set(counts(tmp_path)))
    workers = [pid for name, *_, pid in started(tmp_path) if name.startswith('slow')]
    process.kill()
    process.join()
    wait_for(lambda: not any(map(alive, workers)))
    (tmp_path / 'go').touch()
    assert len(sweep(tmp_path, names).done) == 5
    assert counts(tmp_path) == dict(a=1, slow1=2, slow2=2, b=1, c=1)
    assert [resumed for name, resumed, *_ in started(tmp_path) if name == 'slow1'] == [False, True]


def test_ctrl_c_ends_the_runs(tmp_path):
    process = in_background(tmp_path, ['slow1', 'slow2', 'a'])
    wait_for(lambda: len(started(tmp_path)) == 2)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 1 and not any(alive(pid) for *_, pid in started(tmp_path))
    assert counts(tmp_path) == dict(slow1=1, slow2=1)
    for name in ('slow1', 'slow2'):
        assert 'KeyboardInterrupt' in (tmp_path / name / 'p_seed0/output.txt').read_text()


def test_a_killed_worker_is_replaced(tmp_path):
    process = in_background(tmp_path, ['slow', 'a'])
    wait_for(lambda: 'slow' in counts(tmp_path))
    worker, = [pid for name, *_, pid in started(tmp_path) if name == 'slow']
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: counts(tmp_path)['slow'] == 2)
    (tmp_path / 'go').touch()
    process.join()
    assert process.exitcode == 0 and counts(tmp_path) == dict(slow=2, a=1)


def test_two_sweeps_share_the_work(tmp_path):
    names = [f'slow{number}' for number in range(4)] + ['a', 'b']
    other = in_background(tmp_path, names)
    wait_for(lambda: len(started(tmp_path)) == 2)
    mine = in_background(tmp_path, names[::-1])
    wait_for(lambda: len(started(tmp_path)) == 6)  # two wait, 'a' and 'b' ended
    (tmp_path / 'go').touch()
    for process in (other, mine):
        process.join()
        assert process.exitcode == 0
    assert counts(tmp_path) == dict.fromkeys(names, 1)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits for its parent does not."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def test_each_run_has_gpus_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5,7')
    executor = Local(None, gpus=1)
    assert executor.jobs == 3
    process = in_background(tmp_path, ['slow1', 'slow2', 'slow3', 'a'], executor=executor)
    wait_for(lambda: len(started(tmp_path)) == 3)
    (tmp_path / 'go').touch()
    process.join()
    devices = [device for *_, device, _ in started(tmp_path)]
    assert sorted(devices[:3]) == ['4', '5', '7'] and devices[3] in devices[:3]
    with pytest.raises(UserError, match='--gpus 4: this machine has 3'):
        Local(None, gpus=4)


def test_command():
    words = command(Cell('swin_tiny', 'p', 3), Settings(
        mini=True, budget='8images', flags=dict(amp=True, layer_decay=0.5, ema=None), gpus=2,
        options=('a.b=1',)), Path('root'), resume=True)
    assert words[1:5] == ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    assert words[6:] == (
        'p --backbone swin_tiny --work-dir root/swin_tiny/p_seed3 --mini --resume '
        '--budget 8images --amp --layer-decay 0.5 --cfg-options a.b=1 randomness.seed=3').split()


@pytest.mark.parametrize('protocol', ['maskrcnn_coco', 'upernet_ade20k'])
def test_fingerprints_are_those_of_records(protocol, mini_root):
    cell = Cell('dilateformer_tiny', protocol, 7)
    plain = hashes([cell], Settings(mini=True))[cell]
    cfg = config.load(cell.protocol, backbone=cell.backbone, mini=True,
                      data_root=str(mini_root), options={'randomness.seed': 7})
    assert facts(cfg, batch=4)['config_hash'] == plain
    for changes in (dict(flags=dict(amp=True)), dict(budget='80images'), dict(subset=0.5),
                    dict(options=('randomness.deterministic=True',))):
        assert hashes([cell], Settings(mini=True, **changes))[cell] != plain


def test_where_a_run_is(tmp_path):
    cell = Cell('a', 'p')
    assert place(cell, tmp_path) == ('starting', '', '', '')
    output = cell.folder(tmp_path) / 'output.txt'
    output.parent.mkdir(parents=True)

    def at(*lines):
        output.write_text('\n'.join(lines) + '\n')
        return place(cell, tmp_path)[:2] + place(cell, tmp_path)[3:]
    mid = 'epoch 2/12  iter 50/75  loss 1.250  lr 1.0e-04  0.20 s/iter  left 1:02:05'
    assert at('$ train', mid) == ('training', 'epoch 2/12  iter 50/75', '1:02:05')
    end = 'iter 40/~40  loss 1.250  lr 1.0e-04  0.20 s/iter  left 0:00'
    assert at('$ train', end) == ('measuring', 'iter 40/~40', '0:00')
    assert at('$ train', mid, '$ train') == ('starting', '', '')


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
    assert table({Cell('c', 'p'): dict(status='failed')}) == 'no cell was completed'


@pytest.mark.slow
def test_ray_gives_the_same_records(tmp_path):
    names = ['a', 'flaky', 'mute', 'b']
    for name in ('pool', 'ray'):
        (tmp_path / name).mkdir()
    pool = sweep(tmp_path / 'pool', names).done
    ray = sweep(tmp_path / 'ray', names, executor=Ray(2)).done
    assert counts(tmp_path / 'ray') == counts(tmp_path / 'pool')
    for found in (pool, ray):
        for record in found.values():
            record.pop('started', None)
    assert ray == pool


@pytest.mark.slow
def test_submitit_gives_the_same_records(tmp_path):
    course = sweep(tmp_path, ['a', 'mute'], retries=0, executor=Slurm(tmp_path, 2, cluster='local'))
    assert course.done[Cell('a', 'p')]['config_hash'] == HASH
    assert course.done[Cell('mute', 'p')]['error'] == 'out of words (exit status 1)'
    assert list((tmp_path / 'slurm').glob('*_log.out'))
