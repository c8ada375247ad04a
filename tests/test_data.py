"""Data sets and loaders: what they read, what they leave out, what they say is wrong."""
from __future__ import annotations

import copy
import io
import json
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from mmcv.transforms import LoadImageFromFile
from PIL import Image
from torch.utils.data import DataLoader

from backbones.errors import UserError
from suite import cli, data, mini

import mmdet.registry  # isort: skip
import mmseg.registry  # isort: skip
from mmseg.datasets.transforms import LoadAnnotations  # isort: skip

SHAPES = dict(classes=mini.MINI_COCO_CLASSES, palette=mini.MINI_COCO_PALETTE)
SCENES = dict(classes=mini.MINI_ADE_CLASSES, palette=mini.MINI_ADE_PALETTE)
TRAIN = 'annotations/instances_train2017.json'


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('made')
    mini.make_mini(root, images=6)
    return root


@pytest.fixture
def root(made, tmp_path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(made, tmp_path / 'data')


def coco(root: Path, split: str = 'train', **options) -> data.CocoInstances:
    pipeline = [dict(type='LoadImage'),
                dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
                dict(type='mmdet.Resize', scale=(120, 96), keep_ratio=True),
                dict(type='mmdet.RandomFlip', prob=1.0), dict(type='mmdet.PackDetInputs')]
    return mmdet.registry.DATASETS.build(dict(
        type='CocoInstances', data_root=str(root / 'coco'), metainfo=SHAPES,
        ann_file=f'annotations/instances_{split}2017.json', pipeline=pipeline,
        data_prefix=dict(img=f'{split}2017/'), filter_cfg=dict(filter_empty_gt=True)) | options)


def ade(root: Path, **options) -> data.AdeSegmentation:
    return mmseg.registry.DATASETS.build(dict(
        type='AdeSegmentation', data_root=str(root / 'ade/ADEChallengeData2016'), metainfo=SCENES,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=[dict(type='LoadImage'), dict(type='LoadLabels'),
                  dict(type='mmseg.PackSegInputs')],
    ) | options)


def spoil(root: Path, change, name: str = TRAIN) -> dict:
    """Rewrite an annotation file through ``change(content)``."""
    path = root / 'coco' / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return content


def complaint(build, *args, **options) -> str:
    """The one line of the UserError that building raises."""
    with pytest.raises(UserError) as caught:
        build(*args, **options)
    text = str(caught.value)
    assert '\n' not in text and str(pickle.loads(pickle.dumps(caught.value))) == text
    return text


# COCO

def test_coco_instances_are_those_of_the_file(root):
    dataset = coco(root)
    content = json.loads((root / 'coco' / TRAIN).read_text())
    assert len(dataset) == 6 and not dataset.skipped
    for info, item in zip((dataset.get_data_info(i) for i in range(6)), dataset):
        own = [a for a in content['annotations'] if a['image_id'] == info['img_id']]
        plain = [a for a in own if not a['iscrowd']]
        truth = item['data_samples'].gt_instances
        assert [mini.COCO_IDS[label] for label in truth.labels] == [
            a['category_id'] for a in plain]
        assert len(item['data_samples'].ignored_instances) == len(own) - len(plain)
        areas = truth.masks.masks.sum((1, 2)) / 0.36  # 200 x 160 shrank to 120 x 96
        assert np.allclose(areas, [a['area'] for a in plain], rtol=0.1, atol=12)
    assert sum(len(dataset[i]['data_samples'].ignored_instances) for i in range(6)) == 1


def test_useless_annotations_are_left_out_counted_and_logged(root, monkeypatch):
    lines = []
    monkeypatch.setattr(data, 'print_log', lambda line, logger: lines.append(line))

    def add(content):
        good = next(a for a in content['annotations'] if not a['iscrowd'])
        changes = [dict(bbox=[200, 10, 20, 20]), dict(bbox=[-30, 10, 30, 20]),
                   dict(bbox=[10, 160, 5, 5]), dict(bbox=[10, 10, 0, 20]), dict(area=0),
                   dict(segmentation=[[1, 1, 5, 5]]), dict(segmentation=[]),
                   dict(segmentation=[[1, 1, 5, 5, 9, 1], [3, 3], [1, 2, 3, 4, 5, 6, 7]]),
                   dict(iscrowd=1, segmentation=dict(counts=[0, 50], size=[5, 10])),
                   dict(image_id=77), dict(category_id=99, bbox=[500, 500, 0, 0]),
                   dict(bbox=[190, 150, 40, 40])]
        content['annotations'] += [{**good, 'id': 1000 + i, **change}
                                   for i, change in enumerate(changes)]
        del content['annotations'][-1]['segmentation']

    before = len(coco(root).get_data_info(0)['instances'])
    spoil(root, add)
    dataset = coco(root)
    assert lines == [
        'instances_train2017.json: skipped 1 annotation of images that the file lacks, '
        '3 boxes outside the image, 2 boxes of zero size, '
        '3 segmentations with fewer than 3 points, '
        '2 parts of segmentations with fewer than 3 points, '
        '1 mask of another size than the image']
    instances = dataset.get_data_info(0)['instances']
    assert len(instances) == before + 1
    assert instances[-1]['mask'] == [[1, 1, 5, 5, 9, 1]]
    assert len(dataset[0]['data_samples'].gt_instances) == before + 1


def test_one_of_a_kind_is_said_in_the_singular():
    assert data._number(1, 'boxes outside the image') == '1 box outside the image'
    assert data._number(2, 'boxes outside the image') == '2 boxes outside the image'


def test_an_image_left_without_instances_still_loads(root):
    def shrink(content):
        for annotation in content['annotations']:
            if annotation['image_id'] == 1:
                annotation['bbox'][2] = 0

    spoil(root, shrink)
    dataset = coco(root)
    assert len(dataset) == 6
    sample = dataset[0]['data_samples']
    assert len(sample.gt_instances) == 0 and sample.gt_instances.masks.masks.shape == (0, 96, 120)


def test_filter_cfg_means_what_it_means_in_mmdet(root):
    def empty(content):
        content['annotations'] = [a for a in content['annotations'] if a['image_id'] != 3]
        content['images'][1].update(height=160)

    spoil(root, empty)
    assert [info['img_id'] for info in map(coco(root).get_data_info, range(5))] == [1, 2, 4, 5, 6]
    assert len(coco(root, filter_cfg=None)) == 6
    assert complaint(coco, root, filter_cfg=dict(min_size=161)).endswith(
        "leaves no image to use: none of its 6 images passes filter_cfg {'min_size': 161}")


def test_nothing_is_left_out_of_evaluation(root):
    content = spoil(root, lambda content: content['annotations'][0].update(
        segmentation=[[1, 1, 5, 5]]), 'annotations/instances_val2017.json')
    dataset = coco(root, 'val', test_mode=True)
    instances = dataset.get_data_info(0)['instances']
    assert len(instances) == len(content['annotations']) and not dataset.skipped
    spoil(root, lambda content: content['annotations'][2].update(segmentation=None),
          'annotations/instances_val2017.json')
    assert f'annotation {content["annotations"][2]["id"]} has no segmentation, so masks ' in (
        complaint(coco, root, 'val', test_mode=True))


def test_a_missing_data_folder_is_told_with_what_belongs_there(tmp_path):
    text = complaint(coco, tmp_path)
    assert text.startswith(f'data folder {tmp_path}/coco is missing')
    for word in (TRAIN, 'and train2017', '--mini', '--data-root'):
        assert word in text


def test_missing_nuclei_are_told_with_what_prepares_them(tmp_path):
    with pytest.raises(UserError, match='annotations/train_tiles.json and tiles .tools/prepare_'
                                        'nuclei.py cpm17 makes them'):
        data.CocoInstances(ann_file='annotations/train_tiles.json', data_prefix=dict(img='tiles/'),
                           data_root=f'{tmp_path}/cpm17/', metainfo=dict(classes=('nucleus',)))


@pytest.mark.parametrize('content, expected', [
    (None, 'cannot read annotation file .*instances_train2017.json: No such file'),
    ('{"images": [{"id": 1, "file_', 'instances_train2017.json is truncated or no JSON'),
    (b'\xff\xfe\x00\x80', 'instances_train2017.json is truncated or no JSON'),
    ('', 'instances_train2017.json is truncated or no JSON'),
    ('[]', 'is not a COCO instance file: it lacks images, categories, annotations'),
    ('{"images": [], "annotations": {}}', 'not a COCO .* it lacks categories, annotations')])
def test_annotation_files_that_are_none(root, content, expected):
    path = root / 'coco' / TRAIN
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=expected):
        coco(root)


@pytest.mark.parametrize('change, expected', [
    (lambda c: c['annotations'][3].pop('area'), r"entry 3 of annotations \(id 4\) lacks 'area'"),
    (lambda c: c['images'][0].pop('height'), r"entry 0 of images \(id 1\) lacks 'height'"),
    (lambda c: c['annotations'][1].update(bbox=[]), r'bbox of annotation 2 is \[\], not x, y'),
    (lambda c: c['annotations'][1].update(id=1), '1 of [0-9]+ annotations repeat the id'),
    (lambda c: c['categories'].pop(1), 'lacks the categories square; it has circle, triangle'),
    (lambda c: c['categories'].reverse(), 'order than .*: triangle, square, circle')])
def test_annotation_files_that_do_not_fit(root, change, expected):
    spoil(root, change)
    with pytest.raises(UserError, match=expected):
        coco(root)


def test_the_first_missing_categories_are_named(root):
    text = complaint(coco, root, metainfo=None)
    assert ('lacks the categories person, bicycle, car and 77 more; it has circle, square, '
            'triangle. ') in text


def test_missing_and_empty_images_are_noticed_at_the_start(root):
    folder = root / 'coco/train2017'
    (folder / '000000000005.jpg').write_bytes(b'')
    assert (f'1 of 6 images of instances_train2017.json are empty (0 bytes), the first is '
            f'{folder}/000000000005.jpg') in complaint(coco, root)
    for number in (4, 2):
        (folder / f'00000000000{number}.jpg').unlink()
    assert (f'2 of 6 images of instances_train2017.json are missing, the first is '
            f'{folder}/000000000002.jpg') in complaint(coco, root)
    shutil.rmtree(folder)
    assert complaint(coco, root).startswith('6 of 6 images')


def test_a_worker_s_error_ends_as_one_line(root, capsys):
    path = root / 'coco/train2017/000000000001.jpg'
    dataset = coco(root)
    path.write_bytes(path.read_bytes()[:900])
    loader = DataLoader(dataset, num_workers=1, collate_fn=list)
    assert cli.guard(lambda: next(iter(loader)) and 0) == 2
    captured = capsys.readouterr().err.splitlines()
    assert captured[-1].startswith(f'error: image {path} is truncated or of no known format')


# ADE20K

def test_labels_are_those_of_mmseg(root):
    for classes in (None, ('sky', 'wall', 'tree')):
        dataset = ade(root, metainfo=classes and dict(classes=classes))
        for index in range(6):
            ours, theirs = dataset.get_data_info(index), dataset.get_data_info(index)
            data.LoadImage().transform(ours)
            data.LoadLabels().transform(ours)
            LoadAnnotations().transform(theirs)
            assert ours['gt_seg_map'].dtype == np.uint8
            assert np.array_equal(ours['gt_seg_map'], theirs['gt_seg_map'])
            assert ours['seg_fields'] == ['gt_seg_map']


def test_labels_of_classes_of_their_own(root):
    dataset = ade(root)
    assert len(dataset) == 6 and dataset.metainfo['label_map'] is None
    path = root / 'ade/ADEChallengeData2016/annotations/training/ADE_train_00000001.png'
    raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    raw[0, 0], raw[9, 9] = 255, 0
    cv2.imwrite(str(path), raw)
    labels = dataset[0]['data_samples'].gt_sem_seg.data[0].numpy()
    assert labels[0, 0] == 255 and set(np.unique(labels)) <= {0, 1, 2, 3, 4, 255}
    assert np.array_equal(labels[raw == 3], np.full((raw == 3).sum(), 2))
    assert (labels[raw == 0] == 255).all()


def label_file(kind: str, raw: np.ndarray) -> bytes:
    file = io.BytesIO()
    if kind == 'palette':
        image = Image.fromarray(raw).convert('P')
        image.putdata(raw.ravel().tolist())
    else:
        image = Image.fromarray(raw.astype(np.uint16) if kind == '16 bit' else raw)
    (image.convert('RGB') if kind == 'colour' else image).save(file, 'PNG')
    return file.getvalue()


@pytest.mark.parametrize('kind', ['palette', '16 bit'])
def test_label_files_of_other_kinds(root, kind):
    dataset = ade(root)
    expected = dataset[0]['data_samples'].gt_sem_seg.data
    path = Path(dataset.get_data_info(0)['seg_map_path'])
    path.write_bytes(label_file(kind, cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))
    assert (dataset[0]['data_samples'].gt_sem_seg.data == expected).all()


def test_label_files_that_are_wrong(root):
    dataset = ade(root)
    path = Path(dataset.get_data_info(0)['seg_map_path'])
    raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    beyond, far = raw.copy(), raw.astype(np.uint16)
    beyond[5, 5], far[5, 5] = 6, 300
    good = path.read_bytes()
    for content, expected in (
            (label_file('8 bit', beyond), 'has the value 6, but there are 5 classes; set'),
            (label_file('16 bit', far), 'has the value 300, but there are 5 classes; set'),
            (label_file('colour', raw), 'has 3 channels; it must have one value per pixel'),
            (label_file('8 bit', raw[:, 1:]), 'is 160 x 199, its image 160 x 200 pixels'),
            (good[:len(good) // 2], 'is truncated or no image'),
            (b'GIF89a, or not', 'is truncated or no image')):
        path.write_bytes(content)
        text = complaint(dataset.__getitem__, 0)
        assert text.startswith(f'label file {path} {expected}')
    path.write_bytes(b'')
    assert complaint(dataset.__getitem__, 0).startswith(f'{path} is empty (0 bytes)')
    path.unlink()
    assert complaint(dataset.__getitem__, 0) == f'cannot read {path}: No such file or directory'


def test_folders_and_files_of_ade20k_that_are_absent(root, tmp_path):
    folder = root / 'ade/ADEChallengeData2016'
    (folder / 'annotations/training/ADE_train_00000004.png').write_bytes(b'')
    assert '1 of 6 label files of ' in (text := complaint(ade, root))
    assert 'are empty (0 bytes), the first is ' in text
    (folder / 'annotations/training/ADE_train_00000002.png').unlink()
    assert '1 of 6 label files of ' in (text := complaint(ade, root))
    assert f'missing, the first is {folder}/annotations/training/ADE_train_00000002.png' in text
    for path in (folder / 'images/training').iterdir():
        path.unlink()
    assert complaint(ade, root).startswith(f'{folder}/images/training holds no *.jpg')
    shutil.rmtree(folder / 'images')
    text = complaint(ade, root)
    assert text.startswith(f'data folder {folder}/images/training is missing; {folder} must hold')
    assert complaint(ade, tmp_path / 'x').count('--mini') == 1


def test_prediction_needs_no_label_file(root):
    path = next(root.glob('ade/ADEChallengeData2016/images/training/*.jpg'))
    results = data.LoadLabels().transform(data.LoadImage().transform(dict(img_path=str(path))))
    assert results['img'].shape == (160, 200, 3) and 'gt_seg_map' not in results


# Pictures

@pytest.fixture
def picture() -> np.ndarray:
    """60 x 80 x 3 uint16, BGR, smooth."""
    coarse = np.random.default_rng(0).integers(0, 65536, (4, 5, 3)).astype(np.uint16)
    return cv2.resize(coarse, (80, 60), interpolation=cv2.INTER_LINEAR)


def load(path: Path, **known) -> np.ndarray:
    results = data.LoadImage().transform(dict(img_path=str(path), **known))
    assert results['img_shape'] == results['ori_shape'] == results['img'].shape[:2]
    assert results['img'].dtype == np.uint8
    return results['img'].astype(int)


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
def test_sixteen_bits_become_eight(picture, tmp_path, suffix):
    path = tmp_path / f'deep{suffix}'
    cv2.imwrite(str(path), picture)
    assert abs(load(path) - (picture // 256)).max() <= 1
    cv2.imwrite(str(path), picture[..., 0])
    assert np.array_equal(load(path), np.repeat(picture[..., :1] // 256, 3, 2))


def test_sixteen_bits_from_a_microscope_s_tiff(picture, tmp_path):
    path = tmp_path / 'planar.tif'
    tifffile.imwrite(path, np.moveaxis(picture[..., ::-1], 2, 0), photometric='rgb',
                     planarconfig='separate')
    assert abs(load(path) - (picture // 256)).max() <= 1


@pytest.mark.parametrize('mode, suffix, tolerance', [
    ('RGB', '.png', 0), ('L', '.png', 0), ('L', '.jpg', 12), ('RGBA', '.png', 0),
    ('LA', '.png', 0), ('P', '.png', 0), ('1', '.png', 0), ('CMYK', '.jpg', 12),
    ('CMYK', '.tif', 2), ('RGB', '.webp', 40)])
def test_kinds_of_pictures(picture, tmp_path, mode, suffix, tolerance):
    image = Image.fromarray((picture[..., ::-1] // 256).astype(np.uint8)).convert(mode)
    if mode == 'RGBA':
        image.putalpha(40)
    image.save(tmp_path / f'picture{suffix}', quality=98)
    expected = np.asarray(image.convert('RGB')).astype(int)[..., ::-1]
    assert abs(load(tmp_path / f'picture{suffix}') - expected).max() <= tolerance


def test_exif_turns_pictures_as_in_mmdet(picture, tmp_path):
    image, path = Image.fromarray((picture // 256).astype(np.uint8)), tmp_path / 'turned.jpg'
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    assert load(path).shape == (80, 60, 3)
    theirs = LoadImageFromFile().transform(dict(img_path=str(path)))['img']
    assert np.array_equal(load(path), theirs)


def test_float_images_hold_the_same_values(picture, tmp_path):
    path = tmp_path / 'a.png'
    cv2.imwrite(str(path), (picture // 256).astype(np.uint8))
    image = data.LoadImage(to_float32=True).transform(dict(img_path=str(path)))['img']
    assert image.dtype == np.float32 and np.array_equal(image, load(path))


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.tif', '.webp'])
@pytest.mark.parametrize('share', [0.02, 0.5, 0.99])
def test_truncated_pictures(picture, tmp_path, suffix, share):
    path = tmp_path / f'cut{suffix}'
    content = cv2.imencode(suffix, (picture // 256).astype(np.uint8))[1].tobytes()
    path.write_bytes(content[:int(share * len(content))])
    text = complaint(load, path)
    assert text.startswith(f'image {path} is truncated or of no known format; copy or download')


def test_truncation_is_seen_whatever_opencv_makes_of_it(picture, tmp_path, monkeypatch):
    """Some releases fill the rest with grey."""
    path = tmp_path / 'cut.jpg'
    content = cv2.imencode('.jpg', (picture // 256).astype(np.uint8))[1].tobytes()
    path.write_bytes(content[:-200])
    monkeypatch.setattr(data.mmcv, 'imfrombytes', lambda *_, **__: np.zeros((60, 80, 3), np.uint8))
    assert 'is truncated' in complaint(load, path)


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_bytes_after_the_end_do_no_harm(picture, tmp_path, suffix):
    content = cv2.imencode(suffix, (picture // 256).astype(np.uint8))[1].tobytes()
    for name, tail in (('clean', b''), ('padded', bytes(512)), ('tailed', b'maker notes')):
        (tmp_path / f'{name}{suffix}').write_bytes(content + tail)
    clean, *others = (load(tmp_path / f'{n}{suffix}') for n in ('clean', 'padded', 'tailed'))
    assert all(np.array_equal(clean, other) for other in others)


def test_whole_pictures_are_decoded_once(picture, tmp_path, monkeypatch):
    path = tmp_path / 'whole.jpg'
    cv2.imwrite(str(path), (picture // 256).astype(np.uint8))
    monkeypatch.setattr(data.Image, 'open', lambda *_: pytest.fail('decoded twice'))
    assert load(path).shape == (60, 80, 3)


def test_files_that_are_no_pictures(tmp_path):
    path = tmp_path / 'a.jpg'
    assert complaint(load, path) == f'cannot read {path}: No such file or directory'
    path.write_bytes(b'')
    assert complaint(load, path).startswith(f'{path} is empty (0 bytes); copy or download')
    path.write_text('<html>404</html>')
    assert complaint(load, path).startswith(f'image {path} is truncated or of no known format')
    assert complaint(load, tmp_path) == f'cannot read {tmp_path}: Is a directory'


def test_a_picture_of_another_size_than_annotated(picture, tmp_path):
    path = tmp_path / 'a.png'
    cv2.imwrite(str(path), (picture // 256).astype(np.uint8))
    assert load(path, height=60, width=80).shape == (60, 80, 3)
    assert complaint(load, path, height=80, width=60) == (
        f'image {path} is 60 x 80 pixels (height x width), its annotations say 80 x 60')


def test_data_sets_survive_copies_and_pickles(root):
    for dataset in (coco(root), ade(root)):
        for twin in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
            assert len(twin) == 6 and twin[0]['inputs'].shape == dataset[0]['inputs'].shape
