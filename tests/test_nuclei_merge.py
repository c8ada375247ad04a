"""Merging detections: masks as crops, copies that go, one label map."""
from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as codec

from histology.merge import Crop, crop, encode, paint, suppress
from tests.slides import slide


def disc(y: int, x: int, radius: int) -> Crop:
    rows, columns = np.ogrid[-radius:radius + 1, -radius:radius + 1]
    return Crop(y - radius, x - radius, rows ** 2 + columns ** 2 <= radius ** 2)


def whole(piece: Crop, shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    y, x, part = piece
    mask[y:y + part.shape[0], x:x + part.shape[1]] = part
    return mask


def clutter(count: int, shape: tuple[int, int], seed: int = 0) -> tuple[list[Crop], np.ndarray]:
    """Discs that overlap in every way, and their scores, some of them equal."""
    rng = np.random.default_rng(seed)
    crops = [disc(int(rng.integers(12, shape[0] - 12)), int(rng.integers(12, shape[1] - 12)),
                  int(rng.integers(2, 12))) for _ in range(count)]
    return crops, rng.integers(0, 50, count) / 50


@pytest.mark.parametrize('box', [np.s_[:, :], np.s_[:, 3:4], np.s_[5:6, :], np.s_[4:9, 2:11],
                                 np.s_[16:17, 22:23], np.s_[0:1, 0:1]])
def test_a_crop_is_its_mask_and_encodes_to_the_same(box):
    mask = np.zeros((17, 23), bool)
    mask[box] = np.random.default_rng(1).random(mask[box].shape) < 0.7
    mask[box][..., 0] = mask[box][0] = True
    piece = crop(mask)
    assert piece.mask.any(0)[[0, -1]].all() and piece.mask.any(1)[[0, -1]].all()
    np.testing.assert_array_equal(whole(piece, mask.shape), mask)
    rle = encode(piece, mask.shape)
    np.testing.assert_array_equal(codec.decode(rle), mask)
    assert codec.area(rle) == mask.sum()


def test_a_crop_lies_where_its_window_lay():
    mask = np.zeros((8, 8), bool)
    mask[2:5, 3:5] = True
    assert crop(mask, y=100, x=40)[:2] == (102, 43)
    assert crop(np.zeros((8, 8), bool)).mask.size == 0


def test_suppression_is_what_a_loop_over_all_pairs_gives():
    shape = 90, 120
    crops, scores = clutter(150, shape)
    masks = np.stack([whole(piece, shape).ravel() for piece in crops]).astype(int)
    areas, shared = masks.sum(1), masks @ masks.T
    expected = []
    for i in np.argsort(-scores, kind='stable'):
        if all(shared[i, j] <= 0.5 * min(areas[i], areas[j]) for j in expected):
            expected.append(i)
    kept = suppress(crops, scores)
    assert kept.tolist() == expected and 20 < len(kept) < 120
    assert len(suppress([], np.zeros(0))) == 0


def test_the_half_of_a_nucleus_goes_though_its_iou_is_small():
    nucleus = disc(20, 20, 10)
    quarter = Crop(10, 10, nucleus.mask[:11, :11])
    beside = disc(20, 36, 10)  # a neighbour that shares a tenth
    assert suppress([quarter, nucleus, beside], np.array([0.5, 0.9, 0.7])).tolist() == [1, 2]
    assert suppress([quarter, nucleus], np.array([0.9, 0.5])).tolist() == [0]


def test_painting_gives_each_pixel_to_the_surest():
    crops, scores = clutter(80, (90, 120))
    crops = [crops[i] for i in suppress(crops, scores)]
    labels, painted = paint(crops, (90, 120))
    assert labels.dtype == np.int32 and (np.diff(painted) > 0).all()
    assert np.unique(labels).tolist() == list(range(len(painted) + 1))
    first = np.full(labels.shape, len(crops))
    for place in reversed(range(len(crops))):
        first[whole(crops[place], labels.shape)] = place
    inside = labels > 0
    np.testing.assert_array_equal(painted[labels[inside] - 1], first[inside])
    assert np.bincount(labels.ravel())[1:].min() >= 10


def test_what_remains_of_a_nucleus_is_its_largest_part():
    bar = Crop(0, 9, np.ones((30, 3), bool))
    under = Crop(10, 0, np.ones((6, 40), bool))  # cut by the bar into 9 and 28 columns
    crumb = Crop(25, 30, np.ones((3, 3), bool))
    labels, painted = paint([bar, under, crumb], (30, 40))
    assert painted.tolist() == [0, 1]  # 9 pixels are no nucleus
    assert np.bincount(labels.ravel())[1:].tolist() == [90, 6 * 28]
    assert not labels[10:16, :9].any()
    labels, painted = paint([], (5, 4))
    assert labels.shape == (5, 4) and not labels.any() and not len(painted)


def test_a_label_map_survives():
    _, labels = slide(200, 330)
    crops = [crop(labels == number) for number in range(1, labels.max() + 1)]
    again, painted = paint(crops, labels.shape)
    np.testing.assert_array_equal(again, labels)
    assert len(painted) == labels.max() == 60
