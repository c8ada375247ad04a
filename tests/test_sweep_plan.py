"""A sweep is told what to do by arguments or by a YAML file, and says how it went."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
from sweeping import HASH, counts, settings

from backbones import UserError
from backbones.registry import smallest
from suite import cli
from suite.config import CONFIGS, find
from suite.sweep import session
from suite.sweep.plan import read


def parser() -> argparse.ArgumentParser:
    """The kinds of arguments that tools/sweep.py has."""
    args = cli.parser('test')
    args.add_argument('backbones', nargs='+')
    args.add_argument('--protocols', nargs='+', default=['maskrcnn_coco'])
    args.add_argument('--seeds', nargs='+', type=int, default=[0])
    args.add_argument('--cfg-options', nargs='+', action='extend', default=[])
    args.add_argument('--work-dir', default='work')
    cli.add_training_arguments(args)
    return args


def plan(folder: Path, text: str, *words: str) -> argparse.Namespace:
    path = folder / 'sweep.yaml'
    path.write_text(text)
    return read(parser(), [str(path), *words])


def test_a_file_says_what_arguments_say(tmp_path):
    file = plan(tmp_path, '''
backbones: [swin_tiny, timm/a]
protocols: upernet_ade20k
seeds: [0, 2]
amp: true
compile: false
subset: 0.1
cfg_options: {a.b: 1, c: [word, 2]}
''')
    words = ('swin_tiny timm/a --protocols upernet_ade20k --seeds 0 2 --amp --subset 0.1 '
             '--cfg-options a.b=1').split()
    assert file == read(parser(), [*words, "c=['word', 2]"])
    assert file.subset == 0.1 and file.seeds == [0, 2]


def test_the_command_line_wins(tmp_path):
    args = plan(tmp_path, 'backbones: all\nseeds: [0, 1]\ncfg_options: [a=1]\nwork_dir: here',
                '--seeds', '5', '--cfg-options', 'a=2', '--budget', '8images')
    assert (args.backbones, args.seeds, args.cfg_options) == (['all'], [5], ['a=1', 'a=2'])
    assert (args.work_dir, args.budget) == ('here', '8images')


@pytest.mark.parametrize('text, complaint', [
    ('backbones: all\nseed: 1', "no setting 'seed'; did you mean seeds"),
    ('protocols: upernet_ade20k', 'backbones are missing; name some, or all'),
    ('backbones: all\nseeds: [one]', "argument --seeds: invalid int value: 'one'"),
    ('backbones: all\namp: 1', 'amp is true or false, not 1'),
    ('backbones: all\nsubset: [1, 2]', 'subset is one value, not [1, 2]'),
    ('backbones: all\nwork_dir:', 'work_dir is no such value: None'),
    ('- swin_tiny', 'holds no settings; write KEY: VALUE'),
    ('backbones: [all', 'is no YAML: while parsing'),
])
def test_what_a_file_cannot_say(tmp_path, text, complaint):
    with pytest.raises(UserError) as error:
        plan(tmp_path, text)
    assert str(error.value).startswith(str(tmp_path / 'sweep.yaml'))
    assert complaint in str(error.value) and '\n' not in str(error.value)


def test_a_file_that_is_not_there_or_not_alone(tmp_path):
    with pytest.raises(UserError, match='no.yml cannot be read .No such file'):
        read(parser(), ['no.yml'])
    with pytest.raises(UserError, match='stands beside other names'):
        read(parser(), ['no.yml', 'swin_tiny'])


def test_the_example_is_the_whole_matrix(tool, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(session, 'run', lambda args, root: told.append(args))
    assert tool('sweep', CONFIGS / 'sweeps/mini_matrix.yaml', '--work-dir', tmp_path).status == 0
    assert told[0].backbones == ['all'] and len(smallest()) == 26 and told[0].mini
    assert [find(name).stem for name in told[0].protocols] == [
        'maskrcnn_coco', 'upernet_ade20k', 'upernet_kumar']


@pytest.mark.parametrize('words, complaint', [
    (['resnet18', 'resnet19'], "unknown backbone 'resnet19'; did you mean"),
    (['resnet18', '--protocols', 'upernet_coco'], "no config 'upernet_coco'; did you mean"),
    (['resnet18', '--cfg-options', 'model.bckbone.arch=x'], "there is no 'bckbone'"),
    (['resnet18', '--budget', 'much'], "--budget 'much' is not a number of images or a time"),
    (['resnet18', '--cfg-options', 'word'], "'word' is not KEY=VALUE"),
    (['resnet18', '--jobs', '0'], '--jobs 0: give 1 or more'),
    (['resnet18', '--gpus', '99'], '--gpus 99: this machine has'),
])
def test_mistakes_are_named_before_anything_runs(tool, tmp_path, words, complaint):
    done = tool('sweep', *words, '--mini', '--work-dir', tmp_path)
    assert complaint in done.complaint()
    assert not list(tmp_path.glob('*/*/output.txt'))


def test_a_machine_without_slurm(tool, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    done = tool('sweep', 'resnet18', '--mini', '--work-dir', tmp_path, '--executor', 'slurm')
    assert done.complaint().startswith('--executor slurm: Could not detect "srun"')


def test_missing_packages_come_with_their_cure(tool, tmp_path, monkeypatch):
    for name, package in (('ray', 'ray'), ('slurm', 'submitit')):
        monkeypatch.setitem(sys.modules, package, None)
        done = tool('sweep', 'resnet18', '--mini', '--work-dir', tmp_path, '--executor', name)
        assert done.complaint() == f'--executor {name} needs {package}: pip install {package}'


def test_a_failed_cell_is_named_at_the_end(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(session, 'Settings', lambda *_: settings(tmp_path))
    monkeypatch.setattr(session, 'hashes', lambda todo, _: dict.fromkeys(todo, HASH))
    done = tool('sweep', 'a', 'broken', 'b', '--jobs', '1', '--gpus', '0', '--work-dir', tmp_path)
    assert done.status == 1 and counts(tmp_path) == dict(a=1, b=1, broken=2)
    lines = done.out.splitlines()
    assert lines[0] == f'3 runs, 1 at a time; results go to {tmp_path}'
    ends = [line.partition(']')[0][1:] for line in lines if line.startswith('[')]
    assert ends == ['1/3', 'again', '2/3', '3/3']
    assert (tmp_path / 'table.md').read_text() in done.out + '\n'
    assert f'records: {tmp_path}/*/*/record.json' in lines
    assert lines[-2:] == ['1 of 3 failed; see output.txt beside the records:',
                          'broken maskrcnn_coco seed 0  failed: UserError: no disk']
    again = tool('sweep', 'a', 'b', '--gpus', '0', '--work-dir', tmp_path)
    assert again.status == 0 and counts(tmp_path) == dict(a=1, b=1, broken=2)
    assert again.out.count('[done before]') == 2
