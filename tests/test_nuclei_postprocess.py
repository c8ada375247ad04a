"""Perfect maps give the nuclei back; the watershed is the textbook's; types of nuclei."""
import cv2
import numpy as np
import pytest
from scipy import ndimage
from skimage.segmentation import watershed

from histology.labels import drop_small
from histology.metrics import nuclei_scores
from histology.postprocess import boundary_instances, hover_watershed, type_of_nuclei
from histology.targets import boundary_classes, hv_maps
from suite.nuclei_speed import postprocess_costs, toy_nuclei


@pytest.fixture(scope='module')
def crowd():
    """256 x 256 with 36 nuclei, most of them touching."""
    true, _ = toy_nuclei(36, 256)
    return true


def one_hot(classes, count):
    return np.stack([classes == k for k in range(count)]).astype(np.float32)


def textbook_watershed(probability, hv):
    """The sheet's steps, one by one, in float64 and with whole markers."""
    foreground = ndimage.label(probability >= 0.5)[0]
    foreground = (drop_small(foreground, 10) > 0).astype(float)

    def scaled(values):
        return (values - values.min()) / (values.max() - values.min())

    x, y = (scaled(one.astype(np.float64)) for one in hv)
    edges = [1 - scaled(cv2.Sobel(one, cv2.CV_64F, *along, ksize=21))
             for one, along in ((x, (1, 0)), (y, (0, 1)))]
    energy = np.clip(np.maximum(*edges) - (1 - foreground), 0, None)
    landscape = -cv2.GaussianBlur((1 - energy) * foreground, (3, 3), 0)
    markers = np.clip(foreground - (energy >= 0.4), 0, None)
    markers = ndimage.binary_fill_holes(markers).astype(np.uint8)
    markers = cv2.morphologyEx(markers, cv2.MORPH_OPEN,
                               cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    markers = drop_small(ndimage.label(markers)[0], 10)
    return watershed(landscape, markers, mask=foreground > 0)


@pytest.mark.parametrize('seed', range(3))
def test_watershed_is_the_textbook(seed):
    true, _ = toy_nuclei(36, 256, seed)
    rng = np.random.default_rng(seed)
    noise = [cv2.GaussianBlur(rng.normal(0, 1, true.shape), (0, 0), 3) for _ in range(3)]
    probability = (0.15 + 0.7 * (true > 0) + noise[0]).astype(np.float32)
    hv = (hv_maps(true) + noise[1:]).astype(np.float32)
    found, expected = hover_watershed(probability, hv), textbook_watershed(probability, hv)
    assert found.max() > 25
    assert nuclei_scores(expected, found)['aji'] > 0.999  # float32 against float64


def test_perfect_maps_give_touching_nuclei_back(crowd):
    assert ndimage.label(crowd)[1] < 0.7 * (len(np.unique(crowd)) - 1), 'many touch'
    found = hover_watershed((crowd > 0).astype(np.float32), hv_maps(crowd))
    scores = nuclei_scores(crowd, found)
    assert scores['dice'] == 1 and scores['dq'] == 1 and scores['pq'] > 0.99
    assert found.dtype == np.int32
    assert np.array_equal(np.unique(found), np.arange(found.max() + 1))


def test_perfect_classes_give_touching_nuclei_back(crowd):
    found = boundary_instances(one_hot(boundary_classes(crowd), 3))
    scores = nuclei_scores(crowd, found)
    assert scores['dq'] == 1 and scores['pq'] > 0.98
    assert found.dtype == np.int32


def test_distance_maps_part_what_probability_joins(crowd):
    flat = hover_watershed((crowd > 0).astype(np.float32), np.zeros((2, *crowd.shape)))
    assert nuclei_scores(crowd, flat)['pq'] < 0.8


def test_threshold_and_least_area(crowd):
    hv = hv_maps(crowd)
    weak = np.where(crowd > 18, 0.6, 0.4) * (crowd > 0)
    found = hover_watershed(weak, hv)
    assert 0 < len(np.unique(crowd[found > 0])) <= 18
    assert hover_watershed(weak, hv, threshold=0.3).max() > 30
    assert hover_watershed(weak, hv, least_area=10 ** 5).max() == 0


@pytest.mark.parametrize('value', [0., 0.49])
def test_nothing_found(value):
    assert not hover_watershed(np.full((40, 50), value), np.zeros((2, 40, 50))).any()
    background = one_hot(np.zeros((40, 50), int), 3)
    assert not boundary_instances(background).any()


def test_growth_keeps_to_the_boundary_and_its_width():
    classes = np.zeros((30, 40), int)
    classes[5:25, 5:25] = 2
    classes[12:18, 12:18] = 1  # seven pixels of boundary around it
    classes[12:15, 32:35] = 1  # 9 px
    found = boundary_instances(one_hot(classes, 3))
    assert found.max() == 1 and (found[15] == 1).sum() == 6 + 2 * 3
    assert (found[:, 32:] == 0).all()
    assert boundary_instances(one_hot(classes, 3), least_area=9).max() == 2
    classes[:, :10] = 0
    assert not boundary_instances(one_hot(classes, 3))[:, :10].any()


def test_type_is_summed_over_the_nucleus():
    labels = np.zeros((6, 10), np.int32)
    labels[:, :4], labels[:, 6:] = 3, 8
    probabilities = np.zeros((4, 6, 10), np.float32)
    probabilities[0] = 0.7  # background has no vote
    probabilities[2, :, :4] = 0.2
    probabilities[1, :2, :4] = 0.3
    probabilities[3, :, 6:] = 0.1
    types = type_of_nuclei(labels, probabilities)
    assert types.dtype == np.uint8
    assert np.array_equal(types, np.select([labels == 3, labels == 8], [2, 3]))
    assert not type_of_nuclei(np.zeros((6, 10), int), probabilities).any()


@pytest.mark.slow
def test_memory_on_four_thousand_pixels_square():
    for name, (cost, quality) in postprocess_costs(10000, 4000, repeats=1).items():
        assert quality > 0.99, name
        assert cost.memory < 1.5 * 2 ** 30, name
