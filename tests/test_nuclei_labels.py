"""Label maps: ids, parts, RLE without loss. Tiles: flush, overlapping, cores that add up."""
from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as codec

from histology.errors import DataError
from histology.labels import decode, drop_small, encode, relabel, separate
from histology.tiling import positions, windows

SMALL = np.array([[0, 9, 9, 0, 2],
                  [0, 0, 9, 0, 2],
                  [5, 0, 0, 9, 0],
                  [5, 0, 2, 2, 0]], np.uint16)


def random_map(shape: tuple[int, int], nuclei: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    for number in range(1, nuclei + 1):
        y, x, height, width = rng.integers((0, 0, 1, 1), (*shape, 30, 30))
        labels[y:y + height, x:x + width] = 3 * number
    return labels


def test_ids_become_consecutive_in_their_order():
    expected = [[0, 3, 3, 0, 1], [0, 0, 3, 0, 1], [2, 0, 0, 3, 0], [2, 0, 1, 1, 0]]
    for kind in (np.uint16, np.int64, np.uint8):
        found = relabel(SMALL.astype(kind))
        assert found.dtype == np.int32 and found.tolist() == expected
    assert relabel(np.zeros((2, 3), int)).tolist() == [[0, 0, 0]] * 2
    assert relabel(np.full((1, 2), 7)).tolist() == [[1, 1]]
    assert relabel(np.zeros((0, 3), int)).shape == (0, 3)


def test_parts_become_nuclei_and_corners_connect():
    assert separate(SMALL).tolist() == [[0, 1, 1, 0, 2], [0, 0, 1, 0, 2],
                                        [3, 0, 0, 1, 0], [3, 0, 4, 4, 0]]
    assert separate(SMALL).dtype == np.int32
    assert separate(np.array([[3, 4], [4, 3]])).tolist() == [[1, 2], [2, 1]]


def test_small_nuclei_go_and_ids_stay():
    assert drop_small(SMALL, 4).tolist() == [[0, 9, 9, 0, 2], [0, 0, 9, 0, 2],
                                             [0, 0, 0, 9, 0], [0, 0, 2, 2, 0]]
    assert drop_small(SMALL, 5).max() == 0 and drop_small(SMALL, 0).tolist() == SMALL.tolist()


def test_annotations_say_what_the_map_says():
    first, second, third = encode(SMALL)
    assert (first['id'], first['area'], first['bbox']) == (2, 4, [2, 0, 3, 4])
    assert (second['id'], second['area'], second['bbox']) == (5, 2, [0, 2, 1, 2])
    assert (third['id'], third['area'], third['bbox']) == (9, 4, [1, 0, 3, 3])
    for one in (first, second, third):
        assert np.array_equal(codec.decode(one['segmentation']) > 0, SMALL == one['id'])
        rle = codec.encode(np.asfortranarray(SMALL == one['id'], np.uint8))
        assert one['segmentation'] == dict(size=[4, 5], counts=rle['counts'].decode())


@pytest.mark.parametrize('labels', [
    random_map((211, 173), 120), np.zeros((7, 5), int), np.full((6, 3), 4), SMALL,
    np.arange(1, 31).reshape(5, 6), np.eye(40, dtype=int)[::-1]])
def test_the_round_trip_loses_nothing(labels):
    annotations = encode(labels)
    assert len(annotations) == np.count_nonzero(np.unique(labels))
    back = decode(annotations, labels.shape)
    assert back.dtype == np.int32 and np.array_equal(back, labels)
    # As in a file, where ids count on through all images.
    moved = [dict(one, id=one['id'] + 1000) for one in annotations]
    assert np.array_equal(relabel(decode(moved, labels.shape)), relabel(labels))


def test_tiles_are_flush_with_the_end():
    assert positions(1000, 256, 128) == [0, 128, 256, 384, 512, 640, 744]
    assert positions(1000, 500, 500) == [0, 500]
    assert positions(256, 256, 128) == positions(100, 256, 128) == [0]
    assert positions(257, 256, 128) == [0, 1]


@pytest.mark.parametrize('height, width, tile, overlap', [
    (700, 900, 256, 64), (1000, 1000, 256, 64), (256, 100, 256, 64), (257, 511, 256, 0),
    (33, 40, 16, 7), (1, 1, 8, 2), (4000, 3999, 640, 64)])
def test_windows_overlap_and_their_cores_partition_the_image(height, width, tile, overlap):
    found = windows(height, width, tile, overlap)
    seen = np.zeros((height, width), np.uint8)
    for y, x, h, w, (y0, x0, y1, x1) in found:
        assert (h, w) == (min(tile, height), min(tile, width))
        assert 0 <= y <= y0 < y1 <= y + h <= height and 0 <= x <= x0 < x1 <= x + w <= width
        seen[y0:y1, x0:x1] += 1
        for rim, core, border in ((y, y0, 0), (x, x0, 0), (y + h, y1, height), (x + w, x1, width)):
            assert rim == core == border or abs(core - rim) >= overlap
    assert (seen == 1).all()
    for starts in ({window.y for window in found}, {window.x for window in found}):
        starts = sorted(starts)
        assert all(one + tile - other >= 2 * overlap for one, other in zip(starts, starts[1:]))


def test_windows_that_cannot_overlap_are_refused():
    with pytest.raises(DataError, match='windows of 128 px cannot overlap by 64 px .* 128 px'):
        windows(500, 500, 128, 64)
