"""From a whole image and its label map to a training sample of a dense network.

The augmentation is HoVer-Net's (Graham et al., 2019) as far as it is known: ranges of
affine maps, flips and colours, nearest labels. Ours: one warp takes each crop from anywhere
in the whole image (theirs from the middle of frames of 540 pixels cut beforehand, which end
up alike); the image is interpolated linearly (theirs: nearest too, which breaks fine
texture); strengths of blur and noise.

Registered in mmengine's root registry. ``img`` is H x W x 3 uint8, BGR.
"""
from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from mmengine.structures import PixelData
from mmseg.datasets.transforms import PackSegInputs

from .errors import DataError
from .formats import dimensions
from .labels import read_map, separate
from .targets import boundary_classes, hv_maps


def _read(path: str, shape: tuple[int, int], image: str) -> np.ndarray:
    labels = read_map(path)
    if labels.shape != shape:
        raise DataError(f'label map {path} is {dimensions(labels.shape)}, its image '
                        f'{image} {dimensions(shape)} pixels; prepare the data again')
    return labels


@TRANSFORMS.register_module()
class LoadNuclei(BaseTransform):
    """Label map and types of a ``NucleiImages`` entry: ``gt_labels`` (H x W uint16, 0
    background) and, where there are types, ``gt_types`` (H x W uint8).

    Raises:
        DataError: a file is absent, broken or of another size than the image.
    """

    def transform(self, results: dict) -> dict:
        shape, image = results['img'].shape[:2], results['img_path']
        results['gt_labels'] = _read(results['label_path'], shape, image)
        if results['type_path']:
            results['gt_types'] = _read(results['type_path'], shape, image)
        return results


@TRANSFORMS.register_module()
class AffineCrop(BaseTransform):
    """A crop from anywhere in the image, by a random affine map about its centre, flipped one
    time in two along each axis. What lies beyond the image is its mirror image.

    Args:
        crop_size: height and width of the crop.
        zoom: range of the enlargement, drawn for each axis.
        translate: largest shift as a share of the crop.
        shear: largest angle in degrees.
        angle: largest rotation in degrees.
    """

    def __init__(self, crop_size: tuple[int, int], zoom: tuple[float, float] = (0.8, 1.2),
                 translate: float = 0.01, shear: float = 5., angle: float = 179.):
        self.crop_size = tuple(crop_size)
        self.zoom = zoom
        self.translate = translate
        self.shear = shear
        self.angle = angle

    def transform(self, results: dict) -> dict:
        matrix = self._matrix(results['img'].shape[:2])
        for key, how in (('img', cv2.INTER_LINEAR), ('gt_labels', cv2.INTER_NEAREST),
                         ('gt_types', cv2.INTER_NEAREST)):
            if key in results:
                results[key] = cv2.warpAffine(
                    results[key], matrix, self.crop_size[::-1],
                    flags=how | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT_101)
        results['img_shape'] = self.crop_size
        return results

    def _matrix(self, shape: tuple[int, int]) -> np.ndarray:
        """2 x 3, from pixels (x, y) of the crop to pixels of the image."""
        draw = np.random.uniform
        turn, slant = (math.radians(draw(-limit, limit)) for limit in (self.angle, self.shear))
        rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        flips = np.diag(np.random.choice([-1., 1.], 2))
        # About the crop's centre: image = shear, zoom, rotation and flips of it, undone.
        forward = flips @ rotation @ [[1, math.tan(slant)], [0, 1]] @ np.diag(draw(*self.zoom, 2))
        back = np.linalg.inv(forward)
        crop = np.array(self.crop_size[::-1])
        image = np.array(shape[::-1])
        least = np.minimum(crop, image) / 2
        centre = draw(least, image - least) + crop * draw(-self.translate, self.translate, 2)
        return np.c_[back, centre - 0.5 - back @ ((crop - 1) / 2)]


@TRANSFORMS.register_module()
class BlurOrNoise(BaseTransform):
    """One of Gaussian blur (sigma up to ``sigma`` pixels), median blur of 3 x 3, and Gaussian
    noise (deviation up to ``noise``, in half of the cases of its own per channel)."""

    def __init__(self, sigma: float = 1., noise: float = 12.):
        self.sigma = sigma
        self.noise = noise

    def transform(self, results: dict) -> dict:
        change = np.random.choice([self._blur, self._median, self._add_noise])
        results['img'] = change(results['img'])
        return results

    def _blur(self, image: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(image, (0, 0), max(np.random.uniform(0, self.sigma), 0.1))

    def _median(self, image: np.ndarray) -> np.ndarray:
        return cv2.medianBlur(image, 3)

    def _add_noise(self, image: np.ndarray) -> np.ndarray:
        channels = np.random.choice([1, 3])
        noise = np.random.normal(0, np.random.uniform(0, self.noise),
                                 (*image.shape[:2], channels))
        return np.clip(image + noise, 0, 255).astype(np.uint8)


@TRANSFORMS.register_module()
class ColourJitter(BaseTransform):
    """Hue, saturation, brightness and contrast, in random order.

    Args:
        hue: largest shift in OpenCV's units, of which 180 are a full circle.
        saturation: largest change of the distance from grey, as a share of it.
        brightness: largest shift of the values, of 255.
        contrast: range of the factor on the distance from the image's mean colour.
    """

    def __init__(self, hue: int = 8, saturation: float = 0.2, brightness: float = 26.,
                 contrast: tuple[float, float] = (0.75, 1.25)):
        self.hue = hue
        self.saturation = saturation
        self.brightness = brightness
        self.contrast = contrast

    def transform(self, results: dict) -> dict:
        changes: list[Callable] = [self._hue, self._saturation, self._brightness, self._contrast]
        image = results['img']
        for index in np.random.permutation(len(changes)):
            image = changes[index](image)
        results['img'] = image
        return results

    def _hue(self, image: np.ndarray) -> np.ndarray:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        shift = np.random.randint(-self.hue, self.hue + 1)
        hsv[..., 0] = (hsv[..., 0].astype(np.int16) + shift) % 180
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)

    def _saturation(self, image: np.ndarray) -> np.ndarray:
        factor = 1 + np.random.uniform(-self.saturation, self.saturation)
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        return cv2.addWeighted(image, factor, grey, 1 - factor, 0)

    def _brightness(self, image: np.ndarray) -> np.ndarray:
        shift = np.random.uniform(-self.brightness, self.brightness)
        return cv2.addWeighted(image, 1, image, 0, shift)

    def _contrast(self, image: np.ndarray) -> np.ndarray:
        factor = np.random.uniform(*self.contrast)
        mean = image.mean((0, 1))
        return np.clip(mean + factor * (image - mean), 0, 255).astype(np.uint8)


@TRANSFORMS.register_module()
class NucleiTargets(BaseTransform):
    """What the heads learn, from the augmented ``gt_labels``, whose pieces become nuclei of
    their own first: ``gt_hv`` (2 x H x W float32) and ``gt_classes`` (H x W uint8, 0
    background, 1 inside, 2 boundary).

    Args:
        width: of the boundary in pixels.
    """

    def __init__(self, width: int = 3):
        self.width = width

    def transform(self, results: dict) -> dict:
        labels = results['gt_labels'] = separate(results['gt_labels'])
        results['gt_hv'] = hv_maps(labels)
        results['gt_classes'] = boundary_classes(labels, self.width)
        return results


@TRANSFORMS.register_module()
class PackNuclei(PackSegInputs):
    """mmseg's inputs and data sample, with ``gt_nuclei`` where there are targets: PixelData of
    ``hv`` (2 x H x W float32), ``classes`` and, if any, ``types`` (1 x H x W uint8)."""

    def __init__(self):
        super().__init__(meta_keys=('img_path', 'img_id', 'ori_shape', 'img_shape', 'label_path',
                                    'type_path', 'group'))

    def transform(self, results: dict) -> dict:
        packed = super().transform(results)
        true = {name: torch.from_numpy(results[f'gt_{name}'])
                for name in ('hv', 'classes', 'types') if f'gt_{name}' in results}
        if 'hv' in true:
            packed['data_samples'].gt_nuclei = PixelData(
                **{name: value if value.ndim == 3 else value[None]
                   for name, value in true.items()})
        return packed
