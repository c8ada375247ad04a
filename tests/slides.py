"""Flat pictures of nuclei for tests: dark ellipses on pink, with their label map."""
from __future__ import annotations

import cv2
import numpy as np


def slide(height: int, width: int, seed: int = 0, pitch: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """An image (H x W x 3 uint8, BGR) and its labels (H x W int32): one ellipse of 10-24 px
    somewhere in every square of ``pitch``, which none leaves."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), (205, 190, 235), np.uint8)
    labels = np.zeros((height, width), np.int32)
    for y in range(0, height - pitch + 1, pitch):
        for x in range(0, width - pitch + 1, pitch):
            axes = rng.integers(5, 13, 2)
            centre = rng.integers(axes.max() + 1, pitch - axes.max(), 2) + (x, y)
            ellipse = (centre.tolist(), axes.tolist(), float(rng.uniform(0, 180)), 0, 360)
            colour = (140 + rng.integers(-20, 20), 60, 90)
            cv2.ellipse(image, *ellipse, tuple(map(int, colour)), -1)
            cv2.ellipse(labels, *ellipse, int(labels.max()) + 1, -1)
    return image, labels
