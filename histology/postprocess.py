"""From the maps of a dense network to nuclei: one label map of a whole image."""
from __future__ import annotations

import cv2
import numpy as np
from scipy.ndimage import binary_fill_holes
from skimage.segmentation import expand_labels, watershed

from .labels import relabel


def hover_watershed(probability: np.ndarray, hv: np.ndarray, threshold: float = 0.5,
                    edge: float = 0.4, least_area: int = 10) -> np.ndarray:
    """Nuclei from their probability and distance maps (HoVer-Net, arXiv 1812.06499).

    Where touching nuclei meet, the distance maps drop from 1 to -1: these edges part the
    markers, from which the foreground is flooded. Foreground without a marker is dropped.
    The edges are normalised over the whole map, so give it all of an image: the result
    depends on the extent.

    Args:
        probability: H x W, of a nucleus.
        hv: 2 x H x W, the distances x and y.
        threshold: least probability of the foreground.
        edge: strength of an edge, in [0, 1], from which on it parts markers.
        least_area: px of a piece of the foreground and of a marker.

    Returns:
        H x W int32, ids 1..N.
    """
    foreground = _parts(probability >= threshold, least_area) > 0
    strength = np.maximum(_edges(hv[0], 1, 0), _edges(hv[1], 0, 1))
    strength[~foreground] = 0
    markers = binary_fill_holes(foreground & (strength < edge))
    opening = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    markers = cv2.morphologyEx(markers.astype(np.uint8), cv2.MORPH_OPEN, opening)
    markers = _parts(markers, least_area)
    height = cv2.GaussianBlur((strength - 1) * foreground, (3, 3), 0)
    return relabel(_flood(height, markers, foreground))


def _flood(height: np.ndarray, markers: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Watershed from the rims of the markers: what lies inside them has no free neighbours,
    and would only crowd the queue."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    inside = cv2.erode((markers > 0).astype(np.uint8), cross) > 0
    flooded = watershed(height, np.where(inside, 0, markers), mask=mask & ~inside)
    return np.where(inside, markers, flooded)


def _edges(distance: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """How steeply a distance map falls along x or y, in [0, 1]: H x W float32."""
    distance = _normalised(np.asarray(distance, np.float32))
    return 1 - _normalised(cv2.Sobel(distance, cv2.CV_32F, dx, dy, ksize=21))


def _normalised(values: np.ndarray) -> np.ndarray:
    return cv2.normalize(values, None, 0, 1, cv2.NORM_MINMAX)


def _parts(mask: np.ndarray, least_area: int) -> np.ndarray:
    """4-connected parts of a mask that are large enough, with ids 1..N: H x W int32."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    kept = stats[:, cv2.CC_STAT_AREA] >= least_area
    kept[0] = False  # the background
    return (np.cumsum(kept, dtype=np.int32) * kept)[parts]


def boundary_instances(class_probabilities: np.ndarray, width: int = 3,
                       least_area: int = 10) -> np.ndarray:
    """Nuclei from the classes of ``targets.boundary_classes``: every connected inside, grown
    into the boundary around it.

    A nucleus too small to have an inside is lost.

    Args:
        class_probabilities: 3 x H x W, of background, inside and boundary.
        width: of the boundary in px, as in training.
        least_area: px of an inside.

    Returns:
        H x W int32, ids 1..N.
    """
    classes = class_probabilities.argmax(0)
    grown = expand_labels(_parts(classes == 1, least_area), width)
    return np.where(classes > 0, grown, 0)


def type_of_nuclei(labels: np.ndarray, type_probabilities: np.ndarray) -> np.ndarray:
    """The type of every nucleus, at all its pixels: the most probable one, summed over its
    pixels with the background set aside (ours; HoVer-Net counts each pixel's first choice).

    Args:
        labels: H x W, 0 background.
        type_probabilities: (1 + types) x H x W, background first.

    Returns:
        H x W uint8: 0 background, k the k-th type.
    """
    labels = np.asarray(labels)
    where = np.nonzero(labels)
    _, nucleus = np.unique(labels[where], return_inverse=True)
    votes = [np.bincount(nucleus, one[where]) for one in type_probabilities[1:]]
    types = np.zeros(labels.shape, np.uint8)
    types[where] = 1 + np.argmax(votes, 0)[nucleus]
    return types
