"""From folders as distributed to prepared ones: layouts, splits, deviations, bad input."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from histology import catalog
from histology.catalog import DATASETS, KUMAR_DIFFERENT, KUMAR_SAME, KUMAR_TRAIN
from histology.coco import tiles
from histology.errors import DataError
from histology.formats import write_mat
from histology.labels import decode, relabel
from histology.prepare import prepare


def put(folder: Path, name: str, seed: int = 0, side: int = 40, suffix: str = '.png',
        typed: bool = False) -> np.ndarray:
    """An image of noise with eight nuclei in its label; one of each half of the types."""
    rng = np.random.default_rng(seed)
    labels = np.kron(np.arange(9).reshape(3, 3), np.ones((side // 4, side // 4), int))
    labels = np.pad(labels, (0, side - len(labels)))
    for part in ('Images', 'Labels'):
        (folder / part).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / 'Images' / f'{name}{suffix}'),
                rng.integers(0, 256, (side, side, 3), np.uint8))
    write_mat(folder / 'Labels' / f'{name}.mat', labels,
              [1, 2, 3, 4, 5, 6, 7, 3] if typed else None)
    return labels


def outlines(folder: Path, name: str, beside: bool = False) -> None:
    images = folder if beside else folder / 'Tissue Images'
    labels = folder if beside else folder / 'Annotations'
    for part in (images, labels):
        part.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(name) + sum(map(ord, name)))
    cv2.imwrite(str(images / f'{name}.tif'), rng.integers(0, 256, (40, 40, 3), np.uint8))
    (labels / f'{name}.xml').write_text(
        '<Annotations><Annotation><Regions><Region><Vertices><Vertex X="5" Y="5"/>'
        '<Vertex X="15" Y="5"/><Vertex X="5" Y="15"/></Vertices></Region></Regions></Annotation>'
        '</Annotations>')


@pytest.fixture
def consep(tmp_path) -> Path:
    for number in range(1, 9):
        put(tmp_path / 'raw/CoNSeP/Train', f'train_{number}', number, typed=True)
    for number in (1, 2):
        put(tmp_path / 'raw/CoNSeP/Test', f'test_{number}', 20 + number, typed=True)
    return tmp_path / 'raw'


@pytest.fixture
def cpm17(tmp_path) -> Path:
    for split, count in (('train', 3), ('test', 2)):
        for number in range(count):
            put(tmp_path / 'raw/cpm17' / split, f'image_{number:02d}',
                50 * (split == 'test') + number)
    return tmp_path / 'raw'


def complaint(*arguments) -> str:
    with pytest.raises(DataError) as error:
        prepare(*arguments)
    assert '\n' not in str(error.value)
    return str(error.value)


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / f'annotations/{name}.json').read_text())


def names(content: dict) -> list[str]:
    return [image['file_name'] for image in content['images']]


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes()
            for path in sorted(root.rglob('*')) if path.is_file()}


# What is written

def test_the_prepared_folder_holds_what_it_should(consep, tmp_path):
    record = prepare('consep', consep, tmp_path / 'data')
    folder = tmp_path / 'data/consep'
    assert record == json.loads((folder / 'prepared.json').read_text())
    assert record['splits'] == dict(
        train=dict(images=8, nuclei=64, sizes={'40 x 40': 8}),
        test=dict(images=2, nuclei=16, sizes={'40 x 40': 2}))
    assert record['types'] == list(catalog.CONSEP_TYPES) and record['skipped'] == []
    assert record['source'] == str(consep) and record['version'] == 1
    assert sorted(path.name for path in folder.iterdir()) == [
        'annotations', 'images', 'labels', 'prepared.json', 'tiles', 'types']
    assert [path.name for path in (tmp_path / 'data').iterdir()] == ['consep']

    train = [f'train/train_{number}.png' for number in range(1, 9)]
    assert names(read(folder, 'train')) == train
    assert names(read(folder, 'test')) == ['test/test_1.png', 'test/test_2.png']
    assert names(read(folder, 'holdout')) == [train[0], train[6]]
    assert sorted(names(read(folder, 'fit')) + [train[0], train[6]]) == train
    assert names(read(folder, 'train_tiles')) == [
        f'train_{number}_y0000_x0000.png' for number in range(1, 9)]
    assert len(names(read(folder, 'fit_tiles'))) == 6


def test_pixels_labels_and_annotations_agree(consep, tmp_path):
    prepare('consep', consep, tmp_path)
    for split in ('train', 'test'):
        content = read(tmp_path / 'consep', split)
        assert [c['name'] for c in content['categories']] == list(catalog.CONSEP_TYPES)
        ids = [a['id'] for a in content['annotations']]
        assert ids == list(range(1, len(ids) + 1))
        for image in content['images']:
            raw = consep / 'CoNSeP' / split.capitalize() / 'Images' / Path(image['file_name']).name
            pixels = cv2.imread(str(tmp_path / 'consep/images' / image['file_name']), -1)
            assert np.array_equal(pixels, cv2.imread(str(raw)))
            labels = cv2.imread(str(tmp_path / 'consep/labels' / image['file_name']), -1)
            assert labels.dtype == np.uint16 and labels.shape == (image['height'], image['width'])
            nuclei = [a for a in content['annotations'] if a['image_id'] == image['id']]
            assert np.array_equal(relabel(decode(nuclei, labels.shape)), labels)
            types = cv2.imread(str(tmp_path / 'consep/types' / image['file_name']), -1)
            assert types.dtype == np.uint8
            merged = [1, 2, 3, 3, 4, 4, 4, 3]
            assert np.array_equal(types, np.array([0, *merged])[labels])
            assert [a['category_id'] for a in nuclei] == merged
            assert all(a['iscrowd'] == 0 for a in nuclei) and image['group'] is None


def test_equal_names_in_both_splits_stay_apart(cpm17, tmp_path):
    record = prepare('cpm17', cpm17, tmp_path)
    assert record['types'] is None and not (tmp_path / 'cpm17/types').exists()
    assert [c['name'] for c in read(tmp_path / 'cpm17', 'train')['categories']] == ['nucleus']
    one, other = (cv2.imread(str(tmp_path / f'cpm17/images/{split}/image_00.png'))
                  for split in ('train', 'test'))
    assert not np.array_equal(one, other)
    assert len(list((tmp_path / 'cpm17/images').rglob('*.png'))) == 5


def test_tiles_are_cut_from_training_images(tmp_path):
    for split, side in (('train', 300), ('test', 290)):
        put(tmp_path / 'raw/cpm17' / split, 'image_00', side, side)
    prepare('cpm17', tmp_path / 'raw', tmp_path)
    content = read(tmp_path / 'cpm17', 'train_tiles')
    assert names(content) == [f'image_00_y{y:04d}_x{x:04d}.png' for y in (0, 44) for x in (0, 44)]
    image = cv2.imread(str(tmp_path / 'cpm17/images/train/image_00.png'))
    labels = cv2.imread(str(tmp_path / 'cpm17/labels/train/image_00.png'), -1)
    for entry, (y, x) in zip(content['images'], [(0, 0), (0, 44), (44, 0), (44, 44)]):
        tile = cv2.imread(str(tmp_path / 'cpm17/tiles' / entry['file_name']))
        assert np.array_equal(tile, image[y:y + 256, x:x + 256])
        nuclei = [a for a in content['annotations'] if a['image_id'] == entry['id']]
        found = decode(nuclei, (256, 256))
        assert np.array_equal(relabel(found), relabel(labels[y:y + 256, x:x + 256]))
    assert read(tmp_path / 'cpm17', 'holdout')['images'] == []  # of one image none can be spared


def test_what_a_rim_leaves_is_ignored_or_becomes_several():
    labels = np.zeros((300, 300), np.int32)
    labels[10:50, 250:298] = 1  # 6 of 48 columns in the left tiles: 12.5 %
    labels[60:100, 254:298] = 2  # 2 of 44: 4.5 %
    labels[120:122, 254:258] = 3  # 4 of 8 pixels
    labels[0:1, 0:2] = 4  # small, but whole
    labels[140:180, 240:280] = 5
    labels[150:170, 240:270] = 0  # a C, open to the left: two pieces of one nucleus
    (left, nuclei), (right, more), *_ = tiles(labels)
    assert (left[1].start, right[1].start) == (0, 44)
    found = [(a['id'], a['area'], a['iscrowd']) for a in nuclei]
    assert sorted(found) == [(1, 240, 0), (2, 80, 1), (3, 4, 1), (4, 2, 0), (5, 160, 0),
                             (5, 160, 0)]
    assert sorted((a['id'], a['iscrowd']) for a in more) == [(1, 0), (2, 0), (3, 0), (5, 0)]


# Splits

@pytest.fixture
def kumar(tmp_path) -> Path:
    parts = zip(('train', 'test_same', 'test_diff'), (KUMAR_TRAIN, KUMAR_SAME, KUMAR_DIFFERENT))
    for place, (folder, published) in enumerate(parts):
        for number, name in enumerate(published):
            put(tmp_path / 'raw/Kumar' / folder, name, 100 * place + number, suffix='.tif')
    return tmp_path / 'raw'


def test_kumar_has_16_and_14_images_in_groups(kumar, tmp_path):
    record = prepare('kumar', kumar / 'Kumar', tmp_path)  # the folder itself serves as well
    assert record['deviations'] == [
        '40 x 40 pixels, not 1000 a side: 30 images (train/TCGA-18-5592-01Z-00-DX1, '
        'train/TCGA-38-6178-01Z-00-DX1, train/TCGA-49-4488-01Z-00-DX1, ...)',
        '240 nuclei in all; 21623 are commonly given']
    test = read(tmp_path / 'kumar', 'test')
    groups = {Path(image['file_name']).stem: image['group'] for image in test['images']}
    assert groups == (dict.fromkeys(KUMAR_SAME, 'same organ')
                      | dict.fromkeys(KUMAR_DIFFERENT, 'different organ'))
    held = {Path(name).stem for name in names(read(tmp_path / 'kumar', 'holdout'))}
    assert held == set(catalog.KUMAR_HOLDOUT) and len(names(read(tmp_path / 'kumar', 'fit'))) == 12
    assert not held & set(groups)


def test_what_is_in_the_wrong_split_is_said(kumar, tmp_path):
    folder = kumar / 'Kumar'
    for part in ('Images', 'Labels'):
        for path in (folder / 'train' / part).glob(f'{KUMAR_TRAIN[0]}.*'):
            path.rename(folder / 'test_same' / part / path.name)
        for path in (folder / 'test_diff' / part).glob(f'{KUMAR_DIFFERENT[2]}.*'):
            path.rename(path.with_stem('mine'))
    shutil.copy(folder / f'train/Images/{KUMAR_TRAIN[1]}.tif',
                folder / f'test_same/Images/{KUMAR_SAME[0]}.tif')
    deviations = prepare('kumar', kumar, tmp_path)['deviations']
    assert deviations[:4] == [
        f'train lacks 1 of 16 images ({KUMAR_TRAIN[0]})',
        f'test_same holds {KUMAR_TRAIN[0]}, which belongs to train',
        f'test_diff lacks 1 of 6 images ({KUMAR_DIFFERENT[2]})',
        'test_diff holds 1 under names that Kumar does not have (mine)']
    assert deviations[-2:] == [
        f'test image {KUMAR_SAME[0]} is the training image {KUMAR_TRAIN[1]} again',
        '240 nuclei in all; 21623 are commonly given']


def test_outlines_are_split_by_name_and_other_images_of_monuseg_left_out(tmp_path):
    raw = tmp_path / 'raw'
    for name in (*KUMAR_TRAIN[:5], *KUMAR_SAME[:2], KUMAR_DIFFERENT[0]):
        outlines(raw / 'MoNuSeg 2018 Training Data', name)
    for name in ('TCGA-2Z-A9J9-01A-01-TS1', 'TCGA-44-2665-01B-06-BS6'):
        outlines(raw / 'MoNuSegTestData', name, beside=True)
    record = prepare('kumar', raw, tmp_path)
    assert record['splits']['train']['images'] == 5 and record['splits']['test']['images'] == 3
    assert record['splits']['test']['nuclei'] == 3
    assert record['deviations'][:2] == [
        "2 were left out, being none of Kumar's images, as the other test images of MoNuSeg "
        '(TCGA-2Z-A9J9-01A-01-TS1, TCGA-44-2665-01B-06-BS6)',
        f'train lacks 11 of 16 images ({", ".join(KUMAR_TRAIN[5:8])}, ...)']
    assert len(names(read(tmp_path / 'kumar', 'holdout'))) == 1


# Deviations

def test_odd_data_is_taken_and_reported_in_a_line_each(consep, tmp_path):
    train = consep / 'CoNSeP/Train'
    pixels = cv2.imread(str(train / 'Images/train_1.png'))
    cv2.imwrite(str(train / 'Images/train_1.png'), cv2.cvtColor(pixels, cv2.COLOR_BGR2BGRA))
    cv2.imwrite(str(train / 'Images/train_2.png'), pixels.astype(np.uint16) * 257)
    labels = np.zeros((40, 40))
    labels[:20, :20] = 70000
    write_mat(train / 'Labels/train_1.mat', labels, [2])
    write_mat(train / 'Labels/train_2.mat', np.zeros((40, 40), int), [])
    record = prepare('consep', consep, tmp_path)
    assert record['deviations'][2:] == [
        'alpha channel, dropped: 1 image (train/train_1)',
        '40 x 40 pixels, not 1000 a side: 10 images (train/train_1, train/train_2, train/train_3, '
        '...)',
        'gaps between ids, renumbered: 1 image (train/train_1)',
        'ids above 65535, renumbered: 1 image (train/train_1 (up to 70000))',
        'ids stored as floats: 1 image (train/train_1)',
        '16 bits per channel, reduced to 8: 1 image (train/train_2)',
        'no nuclei: 1 image (train/train_2)']
    assert record['types'] and record['splits']['train']['nuclei'] == 49
    image = cv2.imread(str(tmp_path / 'consep/images/train/train_2.png'), -1)
    assert np.array_equal(image, pixels)
    labels = cv2.imread(str(tmp_path / 'consep/labels/train/train_1.png'), -1)
    assert labels.max() == 1 and (labels == 1).sum() == 400


@pytest.mark.parametrize('types, said', [
    ([1, 2, 2, 1, 1, 1, 2, 2], "only the numbers 1, 2 occur, which need not mean what CoNSeP's (1 "
                               'to 7) do'),
    ([1, 2, 3, 4, 5, 6, 7, 8], "the number 8 is none of CoNSeP's (1 to 7)"),
    ([0, 2, 3, 4, 5, 6, 7, 1], "the number 0 is none of CoNSeP's (1 to 7)"),
    (None, '10 labels have none')])
def test_types_that_are_not_consep_s_are_left_out(consep, tmp_path, types, said):
    for path in consep.rglob('*.mat'):
        labels = np.kron(np.arange(9).reshape(3, 3), np.ones((10, 10), int))
        write_mat(path, np.pad(labels, (0, 10)), types)
    record = prepare('consep', consep, tmp_path)
    assert record['types'] is None and record['deviations'][-1] == f'types were left out: {said}'
    content = read(tmp_path / 'consep', 'train')
    assert [c['name'] for c in content['categories']] == ['nucleus']
    assert {a['category_id'] for a in content['annotations']} == {1}
    assert not (tmp_path / 'consep/types').exists()


# Bad input

def test_sizes_that_differ_are_named(consep, tmp_path):
    path = consep / 'CoNSeP/Train/Labels/train_3.mat'
    write_mat(path, np.ones((40, 39), int))
    assert complaint('consep', consep, tmp_path / 'data') == (
        f'label {path} is 40 x 39, its image 40 x 40 pixels (height x width) (--skip-bad leaves '
        'such images out)')
    assert not any((tmp_path / 'data').iterdir())


def test_one_bad_file_among_many_is_named_and_can_be_skipped(consep, tmp_path):
    (consep / 'CoNSeP/Train/Images/train_4.png').write_bytes(b'\x89PNG')
    (consep / 'CoNSeP/Test/Labels/test_1.mat').unlink()
    (consep / 'CoNSeP/Train/Images/train_6.png').unlink()
    assert complaint('consep', consep, tmp_path / 'data').startswith(
        f'image {consep}/CoNSeP/Train/Images/train_4.png is truncated or of no known format')
    record = prepare('consep', consep, tmp_path / 'data', True)
    assert record['skipped'] == [
        f'image {consep}/CoNSeP/Train/Images/train_4.png is truncated or of no known format; copy '
        'or download it again',
        f'label {consep}/CoNSeP/Train/Labels/train_6.mat has no image',
        f'image {consep}/CoNSeP/Test/Images/test_1.png has no label']
    assert record['splits']['train']['images'] == 6 and record['splits']['test']['images'] == 1

    shutil.rmtree(consep / 'CoNSeP/Test/Labels')
    assert 'all test images are bad, the first: ' in complaint(
        'consep', consep, tmp_path / 'data', True)


def test_what_is_missing_is_explained(consep, tmp_path):
    for name, source in (('kumar', consep), ('cpm17', consep), ('consep', tmp_path / 'data')):
        (tmp_path / 'data').mkdir(exist_ok=True)
        line = complaint(name, source, tmp_path / 'out')
        assert line.startswith(f'{source} holds no train images of {DATASETS[name].title}')
        assert DATASETS[name].layout in line
    shutil.rmtree(consep / 'CoNSeP/Test')
    assert f'{consep} holds no test images of CoNSeP' in complaint('consep', consep, tmp_path)
    assert complaint('consep', tmp_path / 'no', tmp_path).startswith(f'no folder {tmp_path}/no')
    assert "no data set 'kumer'; there are kumar, consep, cpm17" in complaint('kumer', '.', '.')


def test_two_images_of_one_name_are_refused(consep, tmp_path):
    shutil.copy(consep / 'CoNSeP/Train/Images/train_1.png',
                consep / 'CoNSeP/Train/Images/train_1.jpg')
    assert 'train_1.jpg and' in complaint('consep', consep, tmp_path)
    for folder in ('test_same', 'test_diff', 'train'):
        put(tmp_path / 'raw2/Kumar' / folder, KUMAR_SAME[0])
    assert f'two test images are named {KUMAR_SAME[0]}' in complaint(
        'kumar', tmp_path / 'raw2', tmp_path)


def test_folders_of_others_and_the_source_are_left_alone(cpm17, tmp_path):
    (tmp_path / 'data/cpm17').mkdir(parents=True)
    (tmp_path / 'data/cpm17/thesis.tex').write_text('years')
    assert 'holds something other than prepared data' in complaint(
        'cpm17', cpm17, tmp_path / 'data')
    assert tree(tmp_path / 'data') == {'cpm17/thesis.tex': b'years'}
    before = tree(cpm17)
    assert 'lies in' in complaint('cpm17', cpm17 / 'cpm17', cpm17)
    (tmp_path / 'file').touch()
    assert 'cannot write cpm17 to' in complaint('cpm17', cpm17, tmp_path / 'file')
    assert tree(cpm17) == before


def test_prepared_data_is_replaced_at_once_or_not_at_all(cpm17, tmp_path):
    prepare('cpm17', cpm17, tmp_path / 'data')
    made = tree(tmp_path / 'data')
    prepare('cpm17', cpm17, tmp_path / 'data')
    assert tree(tmp_path / 'data') == made
    path = cpm17 / 'cpm17/test/Labels/image_01.mat'
    path.write_bytes(b'')
    assert 'image_01.mat is empty' in complaint('cpm17', cpm17, tmp_path / 'data')
    assert tree(tmp_path / 'data') == made


# The command line

def test_without_a_source_the_command_explains(tool):
    for name, words in (('kumar', ('30 H&E images (16 to train on, 14', 'CC BY-NC-SA 4.0', '.xml')),
                        ('consep', ('27 to train on', 'warwick.ac.uk', 'Apache-2.0')),
                        ('cpm17', ('32 to train on', 'none found', 'hover_net'))):
        done = tool('prepare_nuclei', name)
        assert not done.status and all(word in done.out for word in words)
        assert done.out.rstrip().endswith(f'prepare_nuclei.py {name} --source DIR')


def test_the_command_prepares_and_reports(tool, consep, tmp_path):
    done = tool('prepare_nuclei', 'consep', '--source', consep, '--out', tmp_path)
    assert not done.status
    assert done.out.splitlines() == [
        'deviation: train lacks 19 of 27 images (train_9, train_10, train_11, ...)',
        'deviation: test lacks 12 of 14 images (test_3, test_4, test_5, ...)',
        'deviation: 40 x 40 pixels, not 1000 a side: 10 images (train/train_1, train/train_2, '
        'train/train_3, ...)',
        'consep train: 8 images, 64 nuclei', 'consep test: 2 images, 16 nuclei',
        'types: miscellaneous, inflammatory, epithelial, spindle-shaped']
    (consep / 'CoNSeP/Test/Images/test_2.png').write_bytes(b'')
    arguments = 'consep', '--source', consep, '--out', tmp_path
    assert 'test_2.png is empty' in tool('prepare_nuclei', *arguments).complaint()
    done = tool('prepare_nuclei', *arguments, '--skip-bad')
    assert not done.status and f'left out: {consep}/CoNSeP/Test/Images/test_2.png' in done.out
