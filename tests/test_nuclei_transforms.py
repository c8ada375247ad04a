"""Augmentation of nuclei: images and labels stay together, ranges are kept, targets follow."""
from __future__ import annotations

import cv2
import numpy as np
import pytest

from histology.errors import DataError
from suite import components  # noqa: F401

from histology.transforms import (  # isort: skip
    AffineCrop, BlurOrNoise, ColourJitter, LoadNuclei, NucleiTargets, PackNuclei)

STILL = dict(zoom=(1., 1.), translate=0., shear=0., angle=0.)


@pytest.fixture(autouse=True)
def seed():
    np.random.seed(0)


def coordinates(height: int, width: int) -> np.ndarray:
    """A picture of its own coordinates: x, y, 0."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, 0 * x], -1).astype(np.uint8)


def cells(height: int = 200, width: int = 160) -> np.ndarray:
    """Squares of 20 px with ids 1..N, 10 px apart."""
    y, x = np.mgrid[:height, :width]
    ids = 1 + (y // 30) * 6 + x // 30
    return np.where((y % 30 < 20) & (x % 30 < 20), ids, 0).astype(np.uint16)


# AffineCrop

def test_crop_at_rest_is_a_piece_of_the_image_or_its_mirror_image():
    seen = set()
    for _ in range(30):
        crop = AffineCrop((60, 40), **STILL)(dict(img=coordinates(100, 90)))['img'].astype(int)
        # Fractions of a pixel shift a linear ramp by a constant.
        right, down = crop[0, 1, 0] - crop[0, 0, 0], crop[1, 0, 1] - crop[0, 0, 1]
        assert crop.shape == (60, 40, 3) and {abs(right), abs(down)} == {1}
        assert np.ptp(crop[..., 0]) == 39 and np.ptp(crop[..., 1]) == 59
        seen.add((right, down))
    assert len(seen) == 4


def test_zoom_shear_and_rotation_have_their_sizes():
    def jacobian(**settings) -> np.ndarray:
        return AffineCrop((65, 65), **{**STILL, **settings})._matrix((300, 300))[:, :2]

    assert np.linalg.svd(jacobian(zoom=(2., 2.)))[1] == pytest.approx([0.5, 0.5])
    areas = [1 / abs(np.linalg.det(jacobian(zoom=(0.8, 1.2), angle=179., shear=5.)))
             for _ in range(200)]
    assert min(areas) >= 0.64 and max(areas) <= 1.44 and 0.95 < np.mean(areas) < 1.05
    turned = [jacobian(angle=179.) for _ in range(50)]
    assert all(np.allclose(one @ one.T, np.eye(2)) for one in turned)
    assert min(abs(one[0, 0]) for one in turned) < 0.2
    sheared = [jacobian(shear=5.) for _ in range(50)]
    assert 0.03 < max(abs(one[0, 1]) for one in sheared) <= np.tan(np.radians(5)) + 1e-9


def test_crops_come_from_everywhere_and_only_translation_leaves_the_image():
    transform = AffineCrop((50, 50), **STILL)
    starts = np.array([np.abs(transform._matrix((100, 200))[:, 2]) for _ in range(300)])
    least, most = starts.min(0), starts.max(0)
    # Unflipped, a crop starts at 0 ... 150; flipped, at its other end.
    assert (least < 5).all() and most[0] > 190 and most[1] > 90
    assert most[0] <= 199.5 and most[1] <= 99.5


def test_labels_and_types_follow_the_image():
    labels = cells()  # ids up to 42
    image = np.repeat((labels * 2).astype(np.uint8)[..., None], 3, 2)
    for _ in range(5):
        out = AffineCrop((96, 96))(dict(img=image, gt_labels=labels,
                                        gt_types=(labels % 3).astype(np.uint8)))
        crop = out['gt_labels']
        same = np.zeros(crop.shape, bool)
        same[2:-2, 2:-2] = (cv2.erode(crop, np.ones((5, 5)))
                            == cv2.dilate(crop, np.ones((5, 5))))[2:-2, 2:-2]
        assert same.mean() > 0.3 and len(np.unique(crop)) > 4
        assert np.abs(out['img'][same, 0].astype(int) - 2 * crop[same]).max() <= 1
        assert (out['gt_types'] == crop % 3).all()
        assert set(np.unique(crop)) <= set(np.unique(labels))
        assert out['img_shape'] == (96, 96)


def test_beyond_the_image_lies_its_mirror_image():
    image = np.full((20, 24, 3), 200, np.uint8)
    labels = np.full((20, 24), 5, np.uint16)
    for _ in range(5):
        out = AffineCrop((64, 64))(dict(img=image, gt_labels=labels))
        assert (out['img'] == 200).all() and (out['gt_labels'] == 5).all()


# Colours

def test_one_of_blur_median_and_noise():
    flat = np.full((64, 64, 3), 128, np.uint8)
    noisy = 0
    for _ in range(60):
        out = BlurOrNoise()(dict(img=flat))['img']
        assert out.dtype == np.uint8 and np.abs(out.astype(int) - 128).max() < 70
        noisy += (out != flat).any()
    assert 8 < noisy < 35
    speck = flat.copy()
    speck[32, 32] = 255
    assert (BlurOrNoise()._median(speck) == flat).all()


def test_colour_jitter_keeps_its_ranges():
    rng = np.random.default_rng(0)
    image = rng.integers(90, 160, (32, 32, 3), np.uint8)
    mean = image.mean((0, 1))
    nothing = ColourJitter(0, 0., 0., (1., 1.))(dict(img=image))['img']
    assert np.abs(nothing.astype(int) - image).max() <= 3  # hue and saturation in 8 bits
    shifts = []
    for _ in range(40):
        lighter = ColourJitter()._brightness(image).astype(int) - image
        assert np.ptp(lighter) <= 1 and np.abs(lighter).max() <= 26
        shifts.append(lighter.mean())
        stretched = ColourJitter()._contrast(image)
        assert np.abs(stretched.mean((0, 1)) - mean).max() < 1
        assert 0.74 < stretched.std() / image.std() < 1.26
    assert min(shifts) < -15 and max(shifts) > 15
    grey = np.full((8, 8, 3), 100, np.uint8)
    assert (ColourJitter()._hue(grey) == 100).all()
    assert (ColourJitter()._saturation(grey) == 100).all()
    pink = np.full((1, 1, 3), (150, 100, 200), np.uint8)
    hue = cv2.cvtColor(pink, cv2.COLOR_BGR2HSV)[0, 0, 0]
    hues = {int(cv2.cvtColor(ColourJitter()._hue(pink), cv2.COLOR_BGR2HSV)[0, 0, 0]) - int(hue)
            for _ in range(100)}
    assert min(hues) <= -7 and max(hues) >= 7 and max(map(abs, hues)) <= 9


# Targets and packing

def test_pieces_of_one_id_become_nuclei_of_their_own():
    labels = np.zeros((40, 60), np.uint16)
    labels[10:30, 5:25] = labels[10:30, 35:55] = 7
    out = NucleiTargets()(dict(gt_labels=labels))
    assert set(np.unique(out['gt_labels'])) == {0, 1, 2}
    for left in (5, 35):
        x, y = out['gt_hv'][:, 10:30, left:left + 20]
        assert (x.min(), x.max(), y.min(), y.max()) == (-1, 1, -1, 1)
        assert (np.diff(x, axis=1) > 0).all() and (np.diff(y, axis=0) > 0).all()
    assert out['gt_hv'][:, labels == 0].any() == np.False_
    assert ((out['gt_classes'] > 0) == (labels > 0)).all()
    # A boundary 3 px wide, but for rounded corners.
    assert (out['gt_classes'] == 1).sum() == 2 * 14 * 14


def test_packs_targets_for_training_and_none_for_testing():
    entry = dict(img_path='a.png', img_id=3, ori_shape=(40, 60), img_shape=(40, 60),
                 label_path='labels/a.png', type_path=None, group='same organ',
                 img=np.zeros((40, 60, 3), np.uint8))
    plain = PackNuclei()(dict(entry))
    assert plain['inputs'].shape == (3, 40, 60) and 'gt_nuclei' not in plain['data_samples']
    assert plain['data_samples'].label_path == 'labels/a.png'
    assert (plain['data_samples'].group, plain['data_samples'].type_path) == ('same organ', None)
    labels = np.zeros((40, 60), np.uint16)
    labels[5:20, 5:20] = 1
    packed = PackNuclei()(NucleiTargets()(dict(entry, gt_labels=labels,
                                               gt_types=labels.astype(np.uint8))))
    true = packed['data_samples'].gt_nuclei
    assert {name: tuple(true.get(name).shape) for name in true.keys()} == dict(
        hv=(2, 40, 60), classes=(1, 40, 60), types=(1, 40, 60))


def test_label_maps_that_do_not_fit_are_refused(tmp_path):
    entry = dict(img=np.zeros((20, 30, 3), np.uint8), img_path='images/a.png', type_path=None,
                 label_path=str(tmp_path / 'a.png'))
    with pytest.raises(DataError, match='a.png is missing or truncated; prepare the data again'):
        LoadNuclei()(dict(entry))
    cv2.imwrite(entry['label_path'], np.zeros((20, 31), np.uint16))
    with pytest.raises(DataError, match='is 20 x 31, its image images/a.png 20 x 30 pixels'):
        LoadNuclei()(dict(entry))
    labels = np.zeros((20, 30), np.uint16)
    labels[3:9, 4:8] = 40000
    cv2.imwrite(entry['label_path'], labels)
    cv2.imwrite(str(tmp_path / 't.png'), (labels > 0).astype(np.uint8) * 3)
    out = LoadNuclei()(dict(entry, type_path=str(tmp_path / 't.png')))
    assert (out['gt_labels'] == labels).all() and out['gt_types'].max() == 3
