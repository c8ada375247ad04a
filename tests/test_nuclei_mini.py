"""Synthetic H&E: stains, nuclei and exact maps, in the layouts of the real data sets."""
from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import loadmat

from histology.catalog import CONSEP_MERGED, CONSEP_TYPES, KUMAR_DIFFERENT, KUMAR_SAME, KUMAR_TRAIN
from histology.labels import relabel, separate
from suite import mini
from suite.mini import make_mini
from suite.mini_nuclei import tile
from suite.preview import preview

KINDS = ('kumar', 'consep', 'cpm17')


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('mini')
    make_mini(root, KINDS, images=8)
    return root


@pytest.fixture(scope='module')
def drawn() -> list:
    return [tile(np.random.default_rng(seed)) for seed in range(12)]


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes()
            for path in sorted(root.rglob('*')) if path.is_file()}


def test_nuclei_are_as_many_and_as_large_as_promised(drawn):
    areas = np.concatenate([np.bincount(labels.ravel())[1:] for _, labels, _ in drawn])
    assert all(20 <= labels.max() <= 45 for _, labels, _ in drawn)
    diameters = np.sqrt(4 * areas / np.pi)
    assert 14 < np.percentile(diameters, 10) and np.percentile(diameters, 97) < 36
    assert diameters.std() > 3


def test_maps_are_exact_and_many_nuclei_touch(drawn):
    touching = total = 0
    for image, labels, types in drawn:
        assert image.shape == (256, 256, 3) and image.dtype == np.uint8
        assert labels.max() == len(types) == len(np.unique(labels)) - 1
        assert separate(labels).max() == labels.max()  # each of one piece
        right, left = labels[:, 1:], labels[:, :-1]
        pairs = (right != left) & (right > 0) & (left > 0)
        touching += len({*right[pairs].tolist(), *left[pairs].tolist()})
        total += labels.max()
        assert set(np.array(CONSEP_MERGED)[types]) == {1, 2, 3, 4}
    assert 0.3 < touching / total < 0.8


def test_light_is_absorbed_as_by_haematoxylin_and_eosin(drawn):
    """Red tells nuclei from the rest; all else is pink to white, and never green."""
    for image, labels, _ in drawn:
        red, green, blue = image.astype(float).transpose(2, 0, 1)
        inside = cv2.erode((labels > 0).astype(np.uint8), np.ones((3, 3))) > 0
        outside = cv2.dilate((labels > 0).astype(np.uint8), np.ones((7, 7))) == 0
        assert red[outside].mean() - red[inside].mean() > 60
        assert (blue[inside] > red[inside]).mean() > 0.8  # violet
        assert (red[outside] > green[outside]).mean() > 0.8  # pink
        assert 0.01 < (image.min(2) > 215).mean() < 0.4  # glass
        # A threshold alone must not do.
        dark = red < 150
        dice = 2 * (dark & (labels > 0)).sum() / (dark.sum() + (labels > 0).sum())
        assert 0.4 < dice < 0.995


def test_the_layouts_are_the_real_ones(root):
    kumar, consep, cpm17 = (root / kind / 'source' for kind in KINDS)
    found = {path.relative_to(kumar / 'Kumar').as_posix() for path in kumar.rglob('*.*')}
    expected = [('train', name) for name in KUMAR_TRAIN[:8]]
    expected += [('test_same', KUMAR_SAME[0]), ('test_diff', KUMAR_DIFFERENT[0])]
    assert found == {f'{folder}/{part}/{name}{suffix}' for folder, name in expected
                     for part, suffix in (('Images', '.tif'), ('Labels', '.mat'))}
    assert sorted(path.stem for path in (consep / 'CoNSeP/Train/Images').iterdir()) == [
        f'train_{number}' for number in range(1, 9)]
    arrays = loadmat(consep / 'CoNSeP/Test/Labels/test_1.mat')
    assert {'inst_map', 'type_map', 'inst_type', 'inst_centroid'} <= set(arrays)
    assert 3 <= arrays['inst_type'].max() <= 7 and arrays['inst_map'].dtype == np.float64
    for split in ('train', 'test'):
        assert (cpm17 / f'cpm17/{split}/Images/image_00.png').is_file()
        assert (cpm17 / f'cpm17/{split}/Labels/image_01.mat').is_file()


def test_prepared_labels_are_the_raw_ones(root):
    for kind, images, oddity in (('kumar', 'Kumar', 'gaps between ids, renumbered: 2 images'),
                                 ('consep', 'CoNSeP', 'alpha channel, dropped: 2 images'),
                                 ('cpm17', 'cpm17', '300 x 300 pixels, not 500 to 600 a side')):
        record = json.loads((root / kind / 'prepared.json').read_text())
        assert any(line.startswith(oddity) for line in record['deviations'])
        assert record['source'] == 'source' and record['skipped'] == []
        assert record['types'] == (list(CONSEP_TYPES) if kind == 'consep' else None)
        assert record['splits']['train']['images'] == 8
        for path in (root / kind / 'source' / images).glob('[Tt]rain/Labels/*.mat'):
            raw = loadmat(path)['inst_map'].astype(int)
            labels = cv2.imread(str(root / kind / f'labels/train/{path.stem}.png'), -1)
            assert np.array_equal(labels, relabel(raw))
    assert len(list((root / 'cpm17/tiles').iterdir())) == 4 + 4 * 4


def test_a_seed_and_a_number_make_an_image(root, tmp_path):
    make_mini(tmp_path / 'again', ['consep'], images=8)
    assert tree(tmp_path / 'again/consep') == tree(root / 'consep')
    make_mini(tmp_path / 'other', ['cpm17'], images=1, seed=1)
    make_mini(tmp_path / 'fewer', ['cpm17'], images=1)
    name = 'cpm17/images/train/image_00.png'
    assert tree(tmp_path / 'fewer')[name] == tree(root)[name] != tree(tmp_path / 'other')[name]


def test_names_that_nobody_published_go_on_after_those_that_are(tmp_path):
    from suite.mini_nuclei import LAYOUTS
    place = LAYOUTS['kumar'].place
    trains, tests = ([place(split, number) for number in range(40)] for split in (0, 1))
    assert [name for _, name in trains[:16]] == list(KUMAR_TRAIN)
    assert len({name for _, name in trains + tests}) == 80
    assert trains[16] == ('Kumar/train', 'TCGA-00-0016-01Z-00-DX1')
    assert tests[10] == ('Kumar/test_same', KUMAR_SAME[5]) and tests[13][0] == 'Kumar/test_diff'


def test_the_usual_set_has_32_and_8_images():
    for kind in KINDS:
        assert mini.KINDS[kind].images == 32
        assert len(mini.KINDS[kind].classes) == len(mini.KINDS[kind].palette)


def test_the_contact_sheet_has_contours_below_images(root, tmp_path):
    preview(root, ('kumar', 'consep'), tmp_path / 'sheet.png')
    sheet = cv2.imread(str(tmp_path / 'sheet.png'))
    assert sheet.shape == (2 * (40 + 2 * 408), 4 * 408, 3)
    image, marked = sheet[44:444, 4:404], sheet[452:852, 4:404]
    changed = (np.abs(image.astype(int) - marked).max(2) > 30).mean()
    assert 0.02 < changed < 0.3
