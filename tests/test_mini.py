"""The mini data: layouts, exact masks, seeds, and folders that several processes share."""
from __future__ import annotations

import hashlib
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as codec

from backbones.errors import UserError
from suite import mini
from suite.mini import ensure_mini, make_mini
from suite.preview import preview

ROOT = Path(__file__).parent.parent
KINDS = ('coco', 'ade')  # nuclei: test_nuclei_mini.py


def tree(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob('*')) if path.is_file()}


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('mini')
    make_mini(root, KINDS, images=20)
    return root


def coco(root: Path, split: str) -> dict:
    return json.loads((root / f'coco/annotations/instances_{split}2017.json').read_text())


def test_the_layout_is_that_of_coco(root):
    for split, count in (('train', 20), ('val', 5)):
        content = coco(root, split)
        assert set(content) == {'info', 'licenses', 'images', 'annotations', 'categories'}
        names = [image['file_name'] for image in content['images']]
        assert names == sorted(p.name for p in (root / f'coco/{split}2017').iterdir())
        assert len(names) == count and all(len(name) == len('000000000001.jpg') for name in names)
        assert all(name == f'{image["id"]:012d}.jpg'
                   for name, image in zip(names, content['images']))
        assert tuple(c['name'] for c in content['categories']) == mini.MINI_COCO_CLASSES
        assert set(content['annotations'][0]) == {
            'id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd', 'segmentation'}
        assert len({a['id'] for a in content['annotations']}) == len(content['annotations'])
        per_image = [sum(a['image_id'] == image['id'] and not a['iscrowd']
                         for a in content['annotations']) for image in content['images']]
        assert 1 <= min(per_image) and max(per_image) <= 5
        assert sum(a['iscrowd'] for a in content['annotations']) == (2 if split == 'train' else 1)


def test_the_layout_is_that_of_ade20k(root):
    folder = root / 'ade/ADEChallengeData2016'
    for split, short, count in (('training', 'train', 20), ('validation', 'val', 5)):
        stems = [f'ADE_{short}_{number:08d}' for number in range(1, count + 1)]
        for part, suffix in (('images', '.jpg'), ('annotations', '.png')):
            assert sorted(p.name for p in (folder / part / split).iterdir()) == [
                stem + suffix for stem in stems]


@pytest.mark.parametrize('split', ['train', 'val'])
def test_masks_areas_and_boxes_agree_exactly(root, split):
    seen = {}
    for annotation in coco(root, split)['annotations']:
        rle = codec.frPyObjects(annotation['segmentation'], mini.HEIGHT, mini.WIDTH)
        assert isinstance(rle, dict) == bool(annotation['iscrowd'])
        rle = rle if isinstance(rle, dict) else codec.merge(rle)
        mask = codec.decode(rle)
        assert mask.sum() == annotation['area'] > 0
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert annotation['bbox'] == [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
        others = seen.setdefault(annotation['image_id'], np.zeros_like(mask))
        assert not (others & mask).any()
        others |= mask


def test_polygons_give_back_the_mask_they_were_traced_from():
    mask = np.zeros((mini.HEIGHT, mini.WIDTH), bool)
    mask[0:4, 0:4] = mask[4:7, 4:9] = True  # two parts that touch in a corner
    mask[100:110, 100:110] = True
    mask[103:106, 100:104] = mask[105:, 109] = False  # a bay, and a cut corner
    mask[mini.HEIGHT - 1, mini.WIDTH - 1] = True
    outlines = list(mini._outlines(mask))
    assert len(outlines) == 4
    rle = codec.merge(codec.frPyObjects(outlines, mini.HEIGHT, mini.WIDTH))
    assert np.array_equal(codec.decode(rle), mask)
    assert sorted(map(len, outlines))[0] == 8  # the single pixel: its four corners


def test_the_class_is_the_shape_and_no_single_colour(root):
    """A shape fills its box as geometry says, and colours differ within a class."""
    fills, colours = {}, {}
    for image in coco(root, 'train')['images']:
        picture = cv2.imread(str(root / 'coco/train2017' / image['file_name']))
        for a in coco(root, 'train')['annotations']:
            x, y, w, h = a['bbox']
            inside = 0 < x and 0 < y and x + w < mini.WIDTH and y + h < mini.HEIGHT
            if a['image_id'] == image['id'] and inside and not a['iscrowd']:
                fills.setdefault(a['category_id'], []).append(a['area'] / (w * h))
                hsv = cv2.cvtColor(picture[y + h // 2:y + h // 2 + 1, x + w // 2:x + w // 2 + 1],
                                   cv2.COLOR_BGR2HSV)
                colours.setdefault(a['category_id'], []).append(int(hsv[0, 0, 0]))
    circle, square, triangle = (np.median(fills[number]) for number in mini.COCO_IDS)
    assert abs(circle - np.pi / 4) < 0.02 and abs(triangle - 0.45) < 0.06
    assert 0.6 < square <= 1 and all(np.ptp(hues) > 10 for hues in colours.values())


def test_labels_are_classes_and_unlabelled_seams(root):
    counts = np.zeros(256, int)
    for path in root.glob('ade/ADEChallengeData2016/annotations/*/*.png'):
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert labels.shape == (mini.HEIGHT, mini.WIDTH) and labels.dtype == np.uint8
        counts += np.bincount(labels.ravel(), minlength=256)
    shares = counts / counts.sum()
    assert len(mini.MINI_ADE_CLASSES) == len(mini.MINI_ADE_PALETTE) == 5
    assert not shares[6:].any() and (shares[1:6] > 0.01).all() and 0.001 < shares[0] < 0.05


def test_a_seed_and_a_number_make_a_picture(root, tmp_path):
    make_mini(tmp_path / 'again', KINDS, images=20)
    assert tree(tmp_path / 'again') == tree(root)
    make_mini(tmp_path / 'other', ['coco'], images=8, seed=1)
    make_mini(tmp_path / 'fewer', ['coco'], images=8)
    name = 'coco/train2017/000000000007.jpg'
    assert tree(tmp_path / 'fewer')[name] == tree(root)[name]
    assert tree(tmp_path / 'other')[name] != tree(root)[name]


def test_complete_sets_are_kept_and_others_made_anew(tmp_path, capsys):
    make_mini(tmp_path, ['ade'], images=4, seed=5)
    made = tree(tmp_path)
    assert capsys.readouterr().out.startswith(f'mini ade: 4 + 1 images in {tmp_path / "ade"} (')
    ensure_mini(tmp_path, ['ade'])
    make_mini(tmp_path, ['ade'], images=4, seed=5)
    assert capsys.readouterr().out == '' and tree(tmp_path) == made

    next(tmp_path.rglob('*.png')).unlink()
    make_mini(tmp_path, ['ade'], images=4, seed=5)
    assert tree(tmp_path) == made
    make_mini(tmp_path, ['ade'], images=8)
    assert len(list(tmp_path.rglob('*.jpg'))) == 10

    marker = tmp_path / 'ade/mini.json'
    marker.write_text(json.dumps(json.loads(marker.read_text()) | dict(version=0)))
    ensure_mini(tmp_path, ['ade'])
    assert json.loads(marker.read_text()) == dict(version=mini.VERSION, kind='ade', seed=0,
                                                  images=[80, 20], files=201)
    assert [path.name for path in tmp_path.iterdir()] == ['ade']


def test_folders_of_others_are_left_alone(tmp_path):
    (tmp_path / 'coco').mkdir()
    (tmp_path / 'coco/thesis.tex').write_text('years')
    with pytest.raises(UserError, match='coco holds something other than mini data'):
        ensure_mini(tmp_path, ['coco'])
    assert list(tree(tmp_path)) == ['coco/thesis.tex']
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='cannot write mini data to .*file/coco'):
        make_mini(tmp_path / 'file', ['coco'], images=1)


def test_nonsense_is_refused(tmp_path):
    with pytest.raises(UserError, match="no mini data of kind 'cocoa'; did you mean coco"):
        make_mini(tmp_path, ['cocoa'])
    for options in (dict(images=0), dict(seed=-1)):
        with pytest.raises(UserError, match='seed of at least 0 and at least 1 image'):
            make_mini(tmp_path, **options)
    assert not any(tmp_path.iterdir())


def race(root: Path, start, log: Path) -> None:
    start.wait()
    with log.open('w') as sys.stdout:
        make_mini(root, KINDS, images=20)


def test_processes_that_start_together_share_one_set(root, tmp_path):
    forked = multiprocessing.get_context('fork')
    start, logs = forked.Barrier(3), [tmp_path / f'{number}.log' for number in range(3)]
    racers = [forked.Process(target=race, args=(tmp_path / 'mini', start, log)) for log in logs]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert [racer.exitcode for racer in racers] == [0, 0, 0]
    assert tree(tmp_path / 'mini') == tree(root)
    assert sum(log.read_text().count('mini coco') for log in logs) == 1
    assert sorted(path.name for path in (tmp_path / 'mini').iterdir()) == ['ade', 'coco']


def test_the_loser_of_a_race_keeps_the_winners_set(tmp_path, monkeypatch, capsys):
    def write_while_another_finishes(folder, seed, counts):
        monkeypatch.setitem(mini.KINDS, 'ade', kind)
        make_mini(tmp_path, ['ade'], images=1)
        (tmp_path / 'ade/first').touch()
        kind.write(folder, seed, counts)

    kind = mini.KINDS['ade']
    monkeypatch.setitem(mini.KINDS, 'ade', kind._replace(write=write_while_another_finishes))
    make_mini(tmp_path, ['ade'], images=1)
    assert (tmp_path / 'ade/first').exists() and capsys.readouterr().out.count('mini ade') == 1
    assert [path.name for path in tmp_path.iterdir()] == ['ade']


def test_the_contact_sheet_shows_pictures_above_annotations(root, tmp_path):
    preview(root, ('coco', 'ade'), tmp_path / 'sheet.png')
    sheet = cv2.imread(str(tmp_path / 'sheet.png'))
    assert sheet.shape == (2 * (40 + 2 * 328), 4 * 408, 3)
    picture, marked = sheet[44:364, 4:404], sheet[372:692, 4:404]
    changed = (np.abs(picture.astype(int) - marked).max(2) > 30).mean()
    assert 0.01 < changed < 0.6
    with pytest.raises(UserError, match='cannot write the preview'):
        preview(root, ['ade'], tmp_path / 'sheet.thing')


def test_the_command_line_makes_what_it_is_told(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / 'tools/make_mini.py', '--out', 'set', '--kind', 'ade',
         '--images', '4', '--preview', 'nowhere/sheet.png'],
        text=True, capture_output=True, cwd=tmp_path)
    assert done.returncode == 2 and len(done.stdout.splitlines()) == 1, done
    assert done.stderr.startswith('error: cannot write the preview nowhere/sheet.png')
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ['set']
    assert len(list(tmp_path.glob('set/*/*/images/*/*.jpg'))) == 5
