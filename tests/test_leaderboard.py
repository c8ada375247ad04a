"""What counts is read, what is comparable is ranked, and everything else is named."""
from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
from records import RECORD, write

from suite import published
from suite.config import ROOT, fingerprint
from suite.leaderboard import page, text
from suite.leaderboard.columns import columns, score
from suite.leaderboard.ranking import AXES, Score, boards, front
from suite.leaderboard.records import collect, read

MACS, PARAMETERS, SPEED = AXES


def box(value: float, **others) -> dict:
    return {'coco/bbox_mAP': value, **others}


def only_board(root: Path):
    board, = boards(collect([root])[0])
    return board


@pytest.mark.parametrize('changes, reason', [
    (dict(version=None), 'of version 1; only version 2 is read'),
    (dict(version=3), 'of version 3; only version 2 is read'),
    (dict(status='running'), 'not completed: still running, or killed'),
    (dict(status='failed', error='UserError: no disk'), 'failed: UserError: no disk'),
    (dict(status='interrupted'), 'interrupted'),
    (dict(status='odd'), "of status 'odd'"),
    (dict(family=None, seed=None), 'it lacks family, seed'),
    (dict(seed='0'), "seed is no int: '0'"),
    (dict(mini=1), 'mini is no bool: 1'),
    (dict(task='test'), 'it lacks tta'),
    (dict(task='draw'), "of task 'draw'"),
    (dict(task='test', tta=False, schedule='unknown'), 'how its checkpoint was trained is not kn'),
    (dict(images_per_second=0), 'images_per_second is 0'),
    (dict(peak_memory=dict(kind='resident')), "peak_memory is {'kind': 'resident'}"),
    (dict(macs=dict(size=[800], model=1)), "macs is {'size': [800], 'model': 1}"),
    (dict(metrics={}), 'it has none of the metrics that rank: PQ, AJI, Dice, box mAP, mask mAP'),
    (dict(metrics=box(math.nan)), 'coco/bbox_mAP is nan'),
    (dict(metrics=box(.4, aAcc=math.inf)), 'aAcc is inf'),
    (dict(metrics=box(None)), 'coco/bbox_mAP is None'),
    (dict(metrics=box(-1.)), 'coco/bbox_mAP is -1.0, which is no score'),
    (dict(metrics=box(43.7)), 'coco/bbox_mAP is 43.7, which is no score'),
])
def test_what_does_not_count_is_named(tmp_path, changes, reason):
    good, bad = write(tmp_path / 'good'), write(tmp_path / 'other' / 'bad', **changes)
    records, left_out = collect([tmp_path])
    assert [record.path for record in records] == [good]
    assert [out.path for out in left_out] == [bad]
    assert left_out[0].reason.startswith(reason)


@pytest.mark.parametrize('content, reason', [
    (json.dumps(RECORD)[:200], 'truncated, or no JSON'), ('', 'truncated, or no JSON'),
    ('[1]', 'no record: the file holds no mapping'), ('\udcff', 'truncated, or no JSON')])
def test_broken_files_are_named(tmp_path, content, reason):
    path = tmp_path / 'record.json'
    path.write_bytes(content.encode(errors='surrogateescape'))
    with pytest.raises(ValueError, match=reason):
        read(path)


def test_of_duplicates_the_newest_counts_and_the_others_are_named(tmp_path):
    old = write(tmp_path / 'a', metrics=box(.9), started='2026-11-19T10:00:00+00:00')
    new = write(tmp_path / 'b', metrics=box(.4))
    shutil.copytree(tmp_path / 'b', tmp_path / 'c')
    records, left_out = collect([tmp_path])
    assert [record.path for record in records] == [new]
    assert [out.path for out in left_out] == [old, tmp_path / 'c' / 'record.json']
    assert all(out.reason == f'a duplicate, with the same settings and seed as {new}, which is '
               'newer or its copy' for out in left_out)


def test_a_folder_named_twice_is_no_duplicate(tmp_path):
    write(tmp_path / 'a' / 'b')
    records, left_out = collect([tmp_path, tmp_path / 'a', f'{tmp_path}/a/../a'])
    assert (len(records), left_out) == (1, [])


@pytest.mark.parametrize('other', [
    dict(protocol='maskrcnn_coco_3x'), dict(schedule='2000 images, batch 16'),
    dict(pretraining='none'), dict(mini=True), dict(task='test', tta=False)])
def test_what_is_not_comparable_is_not_ranked_together(tmp_path, other):
    write(tmp_path / 'a', metrics=box(.4))
    write(tmp_path / 'b', metrics=box(.5), backbone='swin_small', settings_hash='b' * 16, **other)
    found = boards(collect([tmp_path])[0])
    assert [len(board.rows) for board in found] == [1, 1]
    assert all(board.ranks('coco/bbox_mAP') == [1] for board in found)
    assert len({str(board.group) for board in found}) == 2


def test_tests_with_several_views_stand_apart(tmp_path):
    for tta in (False, True):
        write(tmp_path / str(tta), task='test', tta=tta)
    assert [board.group.evaluation for board in boards(collect([tmp_path])[0])] == [
        'a checkpoint tested', 'a checkpoint tested with several views']


def test_seeds_are_averaged(tmp_path):
    for seed, (value, speed) in enumerate([(.40, 50.), (.42, 60.), (.47, 70.)]):
        write(tmp_path / str(seed), seed=seed, metrics=box(value), images_per_second=speed,
              peak_memory=dict(kind='cuda allocated', mib=1000. + seed))
    row, = only_board(tmp_path).rows
    mean, std, n = row.score('coco/bbox_mAP')
    # Deviations of -3, -1 and 4 from 43: the sample's variance is 26 / 2.
    assert (mean, std, n) == (pytest.approx(43.), pytest.approx(math.sqrt(13)), 3)
    assert score(row.score('coco/bbox_mAP')).text == '43.00 ± 3.61'
    assert (row.speed, row.memory) == (60., 1002.)
    assert score(Score(43., None, 1)).text == '43.00'
    assert score(Score(43., 1., 2), seeds=3).text == '43.00 ± 1.00 (of 2)'


def test_other_settings_of_a_backbone_are_another_row(tmp_path):
    write(tmp_path / 'a', metrics=box(.4))
    write(tmp_path / 'b', metrics=box(.5), settings_hash='b' * 16)
    write(tmp_path / 'c', metrics=box(.6), settings_hash='c' * 16, backbone='swin_small')
    board = only_board(tmp_path)
    assert [row.label for row in board.rows] == ['swin_small', 'swin_tiny [bbbbbbbb]',
                                                 'swin_tiny [aaaaaaaa]']


def test_ranks_and_ties(tmp_path):
    scores = dict(a=(.40, .39), b=(.42, .30), c=(.42, .35))
    for name, (first, second) in scores.items():
        write(tmp_path / name, backbone=name, metrics=box(first, **{'coco/segm_mAP': second}))
    write(tmp_path / 'd', backbone='d', metrics=box(.30))
    board = only_board(tmp_path)
    assert [row.label for row in board.rows] == ['b', 'c', 'a', 'd']
    assert board.ranks('coco/bbox_mAP') == [1, 1, 3, 4]
    assert board.ranks('coco/segm_mAP') == [3, 2, 1, None]


def test_front():
    points = [(1, 10), (2, 9), (2, 12), (3, 12), (4, 15), (2, 12)]
    assert front(points, less_is_better=True) == [0, 2, 4, 5]
    assert front(points, less_is_better=False) == [4]
    assert front([(1, 5), (2, 4), (3, 1), (2, 3)], less_is_better=False) == [0, 1, 2]


def test_only_equal_machines_and_sizes_compete(tmp_path):
    """A slow machine's best is not beaten by a fast machine's; MACs at another size neither."""
    for name, value, speed, device, size in (
            ('a', .40, 100., 'H200', 800), ('b', .41, 90., 'H200', 800),
            ('c', .30, 80., 'H200', 800), ('d', .35, 10., 'A100', 800),
            ('e', .34, 9., 'A100', 640)):
        write(tmp_path / name, backbone=name, metrics=box(value), images_per_second=speed,
              device=device, world_size=1, macs=dict(size=[size, 1280], backbone=1, model=10 ** 9))
    board = only_board(tmp_path)
    names = [row.label for row in board.rows]
    assert names == ['b', 'a', 'd', 'e', 'c']
    assert board.fronts('coco/bbox_mAP', SPEED) == {
        'H200, bfloat16 autocast': [0, 1], 'A100, bfloat16 autocast': [2]}
    assert board.fronts('coco/bbox_mAP', MACS) == {'800 x 1280': [0], '640 x 1280': [3]}
    assert board.fronts('coco/bbox_mAP', PARAMETERS) == {'': [0]}
    assert 'device, precision' in [column.title for column in columns(board)]


def test_speed_over_several_machines_is_no_number(tmp_path):
    write(tmp_path / 'a')
    write(tmp_path / 'b', seed=1, precision='float32')
    row, = only_board(tmp_path).rows
    assert (row.speed, row.machine) == (None, 'several machines')
    write(tmp_path / 'a', world_size=1, device='CPU')
    write(tmp_path / 'b', world_size=1, device='CPU', seed=1, images_per_second=None)
    row, = only_board(tmp_path).rows
    assert (row.speed, row.machine) == (None, 'CPU, bfloat16 autocast')


@pytest.fixture
def two(tmp_path) -> Path:
    """Two real backbones, one of them reconstructed and without MACs, a mini one, a failed one."""
    root = tmp_path / 'runs | Zürich'
    write(root / 'a', metrics=box(.4))
    write(root / 'b', metrics=box(.45), family='STT', backbone='stt_s25', reconstruction=True,
          macs=None, commit='unknown')
    write(root / 'c', mini=True, seed=3, commit='f' * 40 + '+changes')
    write(root / 'd', status='failed', error='a | b')
    return root


def test_markdown(two, tmp_path):
    records, left_out = collect([two])
    lines = text.markdown(boards(records), left_out, tmp_path / 'out').splitlines()
    real, mini = (place for place, line in enumerate(lines) if line.startswith('## maskrcnn_coco'))
    assert lines[real] == '## maskrcnn_coco: 12 epochs, batch 16, pre-training: ImageNet-1K'
    assert lines[mini].endswith(' (MINI)') and lines[mini + 2].startswith('**MINI**: synthetic')
    assert lines[real + 4].startswith('| rank | backbone | family | box mAP | parameters, M | MACs')
    rows = [line for line in lines[real:mini] if re.match(r'\| \d', line)]
    assert rows[0].startswith('| 1 | stt_s25* | STT | 45.00 | 47.8 | - | 60.00 | 7.42 | unknown |')
    assert rows[1].startswith('| 2 | swin_tiny | Swin | 40.00 | 47.8 | 267.0 | 60.00 | 7.42 | 012')
    assert '- MACs (G) (800 x 1280): swin_tiny' in lines
    assert lines[-1].endswith(r'runs \| Zürich/d/record.json: failed: a \| b')
    links = re.findall(r'\[\d\]\((.*?)\)', '\n'.join(lines))
    assert [(tmp_path / 'out' / unquote(link)).resolve() for link in links] == [
        two.resolve() / name / 'record.json' for name in 'bac']


def test_groups_side_by_side(two):
    assert text.overview(boards(collect([two])[0])).splitlines() == [
        '1. maskrcnn_coco: 12 epochs, batch 16, pre-training: ImageNet-1K',
        '2. maskrcnn_coco: 12 epochs, batch 16, pre-training: ImageNet-1K (MINI)', '',
        '| backbone | M | 1: box mAP | 2: box mAP | 2: mask mAP |',
        '|---|---|---|---|---|',
        '| stt_s25* | 27.5 | 45.00 | - | - |',
        '| swin_tiny | 27.5 | 40.00 | 43.70 | 39.80 |']


def test_csv(two, tmp_path):
    rows = list(csv.DictReader(io.StringIO(text.table(boards(collect([two])[0]), tmp_path))))
    assert [(row['backbone'], row['rank in group'], row['mini'], row['reconstruction'])
            for row in rows] == [('stt_s25', '1', 'False', 'True'),
                                 ('swin_tiny', '2', 'False', 'False'),
                                 ('swin_tiny', '1', 'True', 'False')]
    assert [(row['MACs'], row['MACs height']) for row in rows[:2]] == [
        ('', ''), ('267000000000', '800')]
    assert [(row['box mAP'], row['box mAP std'], row['box mAP seeds']) for row in rows] == [
        ('45.0', '', '1'), ('40.0', '', '1'), ('43.7', '', '1')]
    assert rows[2]['commit'] == 'fffffff+changes'


def test_published_results_lie_beside_real_ones_of_the_same_protocol(tmp_path):
    for place, protocol in enumerate(('maskrcnn_coco', 'maskrcnn_coco_3x')):
        write(tmp_path / str(place), protocol=protocol)
    write(tmp_path / 'mini', mini=True)
    results = list(published.results())
    beside = {str(board.group).partition(':')[0] + ' mini' * board.group.mini: {
        point['name']: point['score'] for point in
        page._plots(board, results)['metrics']['coco/bbox_mAP']['published']}
        for board in boards(collect([tmp_path])[0])}
    assert beside['maskrcnn_coco']['MogaNet small'] == 46.6
    assert beside['maskrcnn_coco_3x']['MogaNet small'] == 48.5
    assert not any(name.startswith(('CETNet', 'STT')) for name in beside['maskrcnn_coco'])
    assert beside['maskrcnn_coco mini'] == {}


def test_several_views_lie_beside_several_scales(tmp_path):
    write(tmp_path / 'a', task='test', tta=True, protocol='upernet_ade20k', metrics=dict(mIoU=45.))
    plots = page._plots(only_board(tmp_path), list(published.results()))
    assert {point['name']: point['score'] for point in
            plots['metrics']['mIoU']['published']}['Swin tiny'] == 45.81


def test_no_name_breaks_the_page(tmp_path):
    evil = '</script><script>alert(1)</script>'
    write(tmp_path / 'a', backbone=evil)
    write(tmp_path / 'b', status='failed', error=evil)
    records, left_out = collect([tmp_path])
    html = page.render(boards(records), left_out, tmp_path)
    assert evil not in html
    assert '&lt;/script&gt;&lt;script&gt;alert(1)' in html
    assert not re.search(r'<(script|link|img|iframe)[^>]*(src|href)="?(https?:)?//', html)


def test_the_tool(tool, two, tmp_path):
    outcome = tool('leaderboard', two, '--out', tmp_path / 'out')
    assert outcome.status == 0, outcome.err
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        f'leaderboard.{suffix}' for suffix in ('csv', 'html', 'md')]
    lines = outcome.out.splitlines()
    assert lines[0] == ('maskrcnn_coco: 12 epochs, batch 16, pre-training: ImageNet-1K: 2 ranked, '
                        'first by box mAP stt_s25* with 45.00')
    assert lines[1].startswith('maskrcnn_coco: 12 epochs, batch 16, pre-training: ImageNet-1K (M')
    assert lines[2:4] == ['not in the tables: 1 of 4 records',
                          f'  {two}/d/record.json: failed: a | b']
    assert lines[4] == f'written: {tmp_path}/out/leaderboard.html, .md and .csv'
    assert tool('leaderboard', two).status == 0
    assert (two / 'leaderboard.html').is_file()


def test_the_tools_bad_input(tool, two, tmp_path):
    assert tool('leaderboard', tmp_path / 'none').complaint().startswith('there is no folder ')
    (tmp_path / 'empty').mkdir()
    assert tool('leaderboard', tmp_path / 'empty').complaint().startswith('no record.json below ')
    assert tool('leaderboard', two / 'd').complaint() == (
        f'none of 1 records can stand in a table; the first, {two}/d/record.json: failed: a | b')
    (tmp_path / 'file').touch()
    assert 'not writable' in tool('leaderboard', two, '--out', tmp_path / 'file').complaint()


def test_seeds_share_their_settings_hash(tiny):
    first, second = (tiny('maskrcnn_coco', {'randomness.seed': seed}) for seed in (0, 1))
    other = tiny('maskrcnn_coco', {'optim_wrapper.optimizer.lr': 1e-3})
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint(first, seed=False) == fingerprint(second, seed=False)
    assert fingerprint(first, seed=False) != fingerprint(other, seed=False)
    assert first.randomness.seed == 0


def test_a_run_writes_a_record_that_counts(trained):
    work_dir = trained('upernet_ade20k')
    content = read(work_dir / 'record.json')
    assert (content['family'], content['mini']) == ('DilateFormer', True)
    assert only_board(work_dir).metrics == ['mIoU']


def test_the_pages_parts_are_packaged():
    declared = (ROOT / 'setup.cfg').read_text()
    for suffix in ('html', 'css', 'js'):
        assert list((ROOT / 'suite/leaderboard').glob(f'*.{suffix}'))
        assert re.search(rf'suite\.leaderboard = .*\*\.{suffix}', declared)
