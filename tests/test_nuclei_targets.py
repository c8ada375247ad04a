"""Distance maps by hand and by the textbook; cut, mirrored and small nuclei; boundaries."""
import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import disk

from histology.targets import boundary_classes, hv_maps
from suite.nuclei_speed import toy_nuclei


def hv_by_loop(labels):
    """HoVer-Net's maps as the sheet tells them: one box, mask and centre at a time."""
    maps = np.zeros((2, *labels.shape))
    for number in np.unique(labels)[1:]:
        box = tuple(slice(max(side.start - 2, 0), side.stop + 2)
                    for side in ndimage.find_objects(labels == number)[0])
        mask = labels[box] == number
        if mask.sum() < 30:
            continue
        centre = [int(c + 0.5) for c in ndimage.center_of_mass(mask)]
        y, x = (np.arange(1, side + 1) - c for side, c in zip(mask.shape, centre))
        for one, grid in zip(maps, (np.tile(x, (len(y), 1)), np.tile(y[:, None], len(x)))):
            grid = np.where(mask, grid, 0.)
            if grid.min() < 0:
                grid[grid < 0] /= -grid.min()
            if grid.max() > 0:
                grid[grid > 0] /= grid.max()
            one[box][mask] = grid[mask]
    return maps


@pytest.mark.parametrize('seed', range(3))
def test_distance_maps_are_the_textbook(seed):
    labels = split(toy_nuclei(30, 240, seed)[0])
    np.testing.assert_allclose(hv_maps(labels), hv_by_loop(labels), atol=1e-6)


def split(labels):
    """Later ellipses may cut earlier ones in two: each part gets an id."""
    parts, total = np.zeros_like(labels), 0
    for number in np.unique(labels)[1:]:
        part, count = ndimage.label(labels == number, np.ones((3, 3)))
        parts[part > 0] = part[part > 0] + total
        total += count
    return parts


def test_columns_are_counted_from_one():
    labels = np.zeros((20, 30), np.int32)
    labels[4:11, 10:16] = 3  # 7 rows, 6 columns; the centre of mass is (7, 12.5)
    x, y = hv_maps(labels)
    np.testing.assert_allclose(x[4, 10:16], [-1, -1 / 2, 0, 1 / 3, 2 / 3, 1], atol=1e-6)
    np.testing.assert_allclose(y[4:11, 10], [-1, -1 / 2, 0, 1 / 4, 2 / 4, 3 / 4, 1], atol=1e-6)
    assert x.dtype == np.float32 and not x[labels == 0].any() and not y[labels == 0].any()


def test_cut_nuclei_are_nuclei_of_their_own():
    labels = np.zeros((24, 40), np.uint16)
    labels[:8, 2:10] = labels[:8, 22:30] = 5  # as after mirroring
    labels[12:18, 2:7] = 5  # 30 px
    labels[20:24, 2:9] = 9  # 28 px
    x, y = hv_maps(labels)
    np.testing.assert_array_equal(x[:8, 2:10], x[:8, 22:30])
    assert x[:8, 2:10].min() == -1 and x[:8, 2:10].max() == 1
    assert x[12:18, 2:7].any() and not x[20:].any() and not y[20:].any()


def test_no_nuclei():
    assert not hv_maps(np.zeros((5, 7), np.int32)).any()
    assert not boundary_classes(np.zeros((5, 7), np.int32)).any()


def test_thin_nuclei_have_a_finite_map():
    labels = np.zeros((40, 9), np.int32)
    labels[2:36, 4] = 1
    x, y = hv_maps(labels)
    assert (x[2:36, 4] == 1).all() and (y.min(), y.max()) == (-1, 1)


def test_boundary_is_what_erosion_takes():
    labels = np.zeros((40, 60), np.int32)
    labels[5:18, 5:18] = 70000
    labels[5:18, 18:31] = 70001  # touches the first
    labels[30:, 40:53] = 3  # cut by the image
    classes = boundary_classes(labels)
    assert classes.dtype == np.uint8
    inside = np.zeros_like(classes, bool)
    inside[8:15, 8:15] = inside[8:15, 21:28] = inside[33:, 43:50] = True
    np.testing.assert_array_equal(classes, np.where(inside, 1, 2 * (labels > 0)))
    assert (boundary_classes(labels, 1)[5:18, 5:18] == 1).sum() == 11 * 11


def test_boundary_is_a_disk_s_erosion_of_each_nucleus():
    labels, _ = toy_nuclei(16, 200)
    inside = sum(ndimage.binary_erosion(labels == number, disk(3), border_value=1)
                 for number in np.unique(labels)[1:])
    np.testing.assert_array_equal(boundary_classes(labels) == 1, inside > 0)
