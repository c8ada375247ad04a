"""What dense networks learn from a label map: HoVer-Net's distance maps, or three classes."""
from __future__ import annotations

import cv2
import numpy as np
from scipy.ndimage import find_objects
from skimage.morphology import disk

from .labels import drop_small, separate

LEAST_AREA = 30  # px; smaller pieces have no distance maps


def hv_maps(labels: np.ndarray) -> np.ndarray:
    """Horizontal and vertical distance of a nucleus's pixels from its centre (HoVer-Net,
    arXiv 1812.06499).

    As its code has it: the centre of mass is rounded, pixels are counted from 1 but the
    centre from 0, so that zero lies one pixel left of and above the centre; left and right
    of it (above, below) are scaled apart to [-1, 0) and (0, 1]. Pieces of a nucleus that a
    crop or a mirror has cut are nuclei of their own; those below ``LEAST_AREA`` stay zero.

    Build the maps after augmentation: rotated or mirrored ones are wrong.

    Args:
        labels: H x W, 0 background, as the network sees it.

    Returns:
        2 x H x W float32, x then y; 0 outside nuclei.
    """
    labels = drop_small(separate(labels), LEAST_AREA)
    maps = np.zeros((2, *labels.shape), np.float32)
    for number, box in enumerate(find_objects(labels), 1):
        if box is None:
            continue
        mask = labels[box] == number
        for one, position in zip(maps, reversed(mask.nonzero())):
            offset = position + 1 - int(position.mean() + 0.5)
            before, after = max(-offset.min(), 1), max(offset.max(), 1)
            one[box][mask] = offset / np.where(offset < 0, before, after)
    return maps


def boundary_classes(labels: np.ndarray, width: int = 3) -> np.ndarray:
    """Background, inside and boundary of nuclei.

    The boundary lies within the nuclei: what erosion by a disk takes from each of them. It
    parts touching nuclei by twice its width; a nucleus that the image cuts has none there.
    Three pixels did best in tiseg's comparison (github.com/clownrat6/Tissue-Image-Segmentation).

    Args:
        labels: H x W, 0 background, ids below 2**24.
        width: radius of the disk in px.

    Returns:
        H x W uint8: 0 background, 1 inside, 2 boundary.
    """
    labels = np.asarray(labels, np.float32)  # OpenCV's morphology has no int32
    near = disk(width)
    inside = cv2.erode(labels, near) == cv2.dilate(labels, near)
    return np.where(labels > 0, 2 - inside, 0).astype(np.uint8)
