"""Label maps: one integer per pixel, 0 background, every nucleus an id of its own.

Functions on maps take H x W of any integer type without negative values, leave them as
they are, and return H x W int32.
"""
from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
from pycocotools import mask as codec
from skimage import measure

from .errors import DataError


def read_map(path: str) -> np.ndarray:
    """A prepared map of ids (H x W uint16) or types (uint8).

    Raises:
        DataError: it is absent or no picture.
    """
    labels = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    if labels is None:
        raise DataError(f'label map {path} is missing or truncated; prepare the data again')
    return labels


def relabel(labels: np.ndarray) -> np.ndarray:
    """The same nuclei with the ids 1..N, in the order of their ids; 0 stays 0.

    The table that does it is as long as the largest id.
    """
    present = np.zeros(int(labels.max(initial=0)) + 1, bool)
    present[labels.ravel()] = True
    present[0] = False
    return np.cumsum(present, dtype=np.int32)[labels]


def separate(labels: np.ndarray) -> np.ndarray:
    """Every connected part its own id, 1..N in reading order of first pixels.

    For crops and mirrored frames, where one id may stand for several pieces. Pixels that
    touch at a corner are connected: 4-connectivity would cut crumbs from rotated rims.
    """
    return measure.label(labels, background=0, connectivity=2).astype(np.int32)


def drop_small(labels: np.ndarray, area: int) -> np.ndarray:
    """Without the nuclei of fewer than ``area`` pixels; ids stay, so gaps may come."""
    kept = np.bincount(labels.ravel()) >= area
    return np.where(kept[labels], labels, 0).astype(np.int32)


def encode(labels: np.ndarray) -> list[dict]:
    """COCO annotations of all nuclei, in the order of their ids.

    Returns:
        per nucleus ``id`` (that of the map), ``segmentation`` (compressed RLE of the whole
        map, counts as text), ``bbox`` (x, y, width, height of the pixels) and ``area``
        (pixels). ``decode`` gives back the same map.
    """
    height, width = labels.shape
    down = labels.ravel(order='F')
    starts = np.concatenate([[0], np.flatnonzero(np.diff(down)) + 1])
    ends = np.append(starts[1:], down.size)
    ids = down[starts]
    order = np.argsort(ids, kind='stable')
    order = order[np.searchsorted(ids[order], 1):]
    found, first = np.unique(ids[order], return_index=True)
    annotations = []
    for number, runs in zip(found.tolist(), np.split(order, first[1:])):
        edges = np.stack([starts[runs], ends[runs]], 1).ravel()
        counts = np.diff(edges, prepend=0, append=down.size).tolist()
        rle = codec.frPyObjects(dict(counts=counts, size=[height, width]), height, width)
        annotations.append(dict(
            id=number, segmentation=dict(size=[height, width], counts=rle['counts'].decode()),
            bbox=codec.toBbox(rle).astype(int).tolist(), area=int(codec.area(rle))))
    return annotations


def decode(annotations: Iterable[dict], shape: tuple[int, int]) -> np.ndarray:
    """The label map of annotations with RLE masks; ids become labels, later ones win.

    Ids of a file count through all its images: ``relabel`` makes them 1..N per image.
    """
    labels = np.zeros(shape, np.int32)
    for annotation in annotations:
        x, y, width, height = annotation['bbox']
        box = np.s_[y:y + height, x:x + width]
        labels[box][codec.decode(annotation['segmentation'])[box] > 0] = annotation['id']
    return labels
