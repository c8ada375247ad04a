"""Augmentation of tiles for detectors: orientation, magnification, stain.

A tile has neither an upside nor a left; its magnification is known, so sizes vary little;
laboratories differ in how deeply they stain. All of it ours.
"""
from __future__ import annotations

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.datasets.transforms import Resize
from mmdet.structures.mask import BitmapMasks
from mmengine.registry import TRANSFORMS
from skimage.color import hed_from_rgb, rgb_from_hed


@TRANSFORMS.register_module()
class Magnify(BaseTransform):
    """Enlarges a tile, its boxes and its masks.

    Args:
        factor: how many times each side.
        jitter: the factor is multiplied by up to this much or divided by it, at random.
    """

    def __init__(self, factor: float, jitter: float = 1.):
        self.factor = factor
        self.jitter = jitter

    def transform(self, results: dict) -> dict:
        factor = self.factor * self.jitter ** np.random.uniform(-1, 1)
        height, width = results['img'].shape[:2]
        return Resize(scale=(round(width * factor), round(height * factor)))(results)


@TRANSFORMS.register_module()
class QuarterTurn(BaseTransform):
    """Turns a tile, its boxes and its masks counter-clockwise by 0, 90, 180 or 270 degrees,
    each as likely; with a random flip before it, all eight orientations are."""

    def transform(self, results: dict) -> dict:
        for _ in range(np.random.randint(4)):
            width = results['img'].shape[1]
            results['img'] = np.ascontiguousarray(np.rot90(results['img']))
            results['img_shape'] = results['img'].shape[:2]
            masks = np.rot90(results['gt_masks'].masks, axes=(1, 2))
            results['gt_masks'] = BitmapMasks(np.ascontiguousarray(masks), *results['img_shape'])
            x1, y1, x2, y2 = results['gt_bboxes'].tensor.unbind(1)
            results['gt_bboxes'].tensor = torch.stack(
                [y1, width - x2, y2, width - x1], 1)
        return results


@TRANSFORMS.register_module()
class StainJitter(BaseTransform):
    """Changes the depth of each stain: haematoxylin's, eosin's and what is left, as optical
    densities in the stain space of Ruifrok and Johnston (2001), are multiplied by a factor
    of their own. Exact: with all factors at 1 the image stays as it is.

    Args:
        amount: factors are drawn from 1 - amount to 1 + amount.
    """

    # Optical density of each of the 256 values; none of 0, which has no logarithm.
    _DENSITY = -np.log(np.maximum(np.arange(256, dtype=np.float32), 1) / 255)

    def __init__(self, amount: float):
        self.amount = amount

    def transform(self, results: dict) -> dict:
        factors = np.random.uniform(1 - self.amount, 1 + self.amount, 3)
        rgb = hed_from_rgb @ np.diag(factors) @ rgb_from_hed
        bgr = rgb[::-1, ::-1].T.astype(np.float32)
        density = cv2.transform(self._DENSITY[results['img']], bgr)
        results['img'] = np.clip(255 * np.exp(-density) + 0.5, 0, 255).astype(np.uint8)
        return results
