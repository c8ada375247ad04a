"""Detections of many windows -> one set without copies -> one label map.

The rules are ours: of two masks that share more than half of the smaller one, the surer
stays; masks are then painted by falling score where nothing is painted yet, and of each
the largest connected part remains. A mask is kept as a crop: a whole slide's thousands of
masks take as much memory as their nuclei, not as the slide.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as codec
from scipy import sparse

LEAST_AREA = 10  # px; what remains of a nucleus below it is no nucleus


class Crop(NamedTuple):
    """The part of a mask within its bounding box.

    Attributes:
        y, x: of the upper left corner, in pixels of the image.
        mask: h x w bool; 0 x 0 where the mask is empty.
    """

    y: int
    x: int
    mask: np.ndarray


def crop(mask: np.ndarray, y: int = 0, x: int = 0) -> Crop:
    """The crop of a mask (H x W bool) that lies in its image at ``y``, ``x``."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    return Crop(y + top, x + left, mask[top:top + height, left:left + width].copy())


def encode(piece: Crop, shape: tuple[int, int]) -> dict:
    """COCO RLE (counts as text) of a crop that is not empty, in an image of this shape."""
    height, width = shape
    columns, rows = np.nonzero(piece.mask.T)
    down = (piece.x + columns) * height + piece.y + rows
    breaks = np.flatnonzero(np.diff(down) > 1)
    edges = np.stack([down[[0, *(breaks + 1)]], down[[*breaks, -1]] + 1], 1).ravel()
    counts = np.diff(edges, prepend=0, append=height * width).tolist()
    rle = codec.frPyObjects(dict(counts=counts, size=[height, width]), height, width)
    return dict(size=[height, width], counts=rle['counts'].decode())


def suppress(crops: Sequence[Crop], scores: np.ndarray, limit: float = 0.5) -> np.ndarray:
    """Non-maximum suppression of masks by their intersection over the smaller area.

    Unlike the IoU, this also finds the half of a nucleus beside the whole.

    Args:
        crops: N masks of one image, none of them empty.
        scores: N.
        limit: larger shares cost the less sure of two masks its place.

    Returns:
        Indices of the kept ones, by falling score.
    """
    order = np.argsort(-np.asarray(scores), kind='stable')
    if not len(order):
        return order
    shared = _shared([crops[i] for i in order])
    areas = shared.diagonal()
    kept = np.ones(len(order), bool)
    for i in range(len(order)):
        if kept[i]:
            row = slice(shared.indptr[i], shared.indptr[i + 1])
            others = shared.indices[row]
            too_much = shared.data[row] > limit * np.minimum(areas[i], areas[others])
            kept[others[too_much & (others > i)]] = False
    return order[kept]


def _shared(crops: Sequence[Crop]) -> sparse.csr_array:
    """Pixels that each two of N masks share: N x N, only what is not zero."""
    width = max(piece.x + piece.mask.shape[1] for piece in crops)
    height = max(piece.y + piece.mask.shape[0] for piece in crops)
    pixels = []
    for y, x, mask in crops:
        rows, columns = np.nonzero(mask)
        pixels.append((y + rows) * width + x + columns)
    ends = np.cumsum([0, *map(len, pixels)])
    masks = sparse.csr_array((np.ones(ends[-1], np.int32), np.concatenate(pixels), ends),
                             shape=(len(crops), height * width))
    return (masks @ masks.T).tocsr()


def paint(crops: Sequence[Crop], shape: tuple[int, int],
          least: int = LEAST_AREA) -> tuple[np.ndarray, np.ndarray]:
    """One label map of masks that may overlap; earlier ones lie on top.

    Args:
        crops: by falling score.
        shape: height and width of the image.
        least: a mask of which less remains (pixels) is left out.

    Returns:
        H x W int32 with the ids 1..K, and the K places in ``crops`` that they stand for.
    """
    labels, painted = np.zeros(shape, np.int32), []
    for place, (y, x, mask) in enumerate(crops):
        below = labels[y:y + mask.shape[0], x:x + mask.shape[1]]
        visible = _largest_part(mask & (below == 0))
        if np.count_nonzero(visible) >= least:
            painted.append(place)
            below[visible] = len(painted)
    return labels, np.array(painted, int)


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest of a mask's 8-connected parts; corners connect as in ``labels.separate``."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    if count <= 2:
        return mask
    return parts == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
