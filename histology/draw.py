"""Contours of nuclei on their picture; truth and prediction side by side."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import mmcv
import numpy as np
from mmengine.registry import VISUALIZERS
from mmengine.structures import BaseDataElement, PixelData
from mmengine.visualization import Visualizer
from skimage.segmentation import find_boundaries

from .labels import read_map

_LEAST_SIDE = 512  # px; smaller pictures are enlarged, so that contours do not hide nuclei
_GAP = 6  # px of white between truth and prediction


def outline(image: np.ndarray, labels: np.ndarray, types: np.ndarray | None = None,
            palette: Sequence[tuple[int, int, int]] = (), width: int = 1) -> np.ndarray:
    """Draw the rim of every nucleus, inside of it.

    Args:
        image: H x W x 3 uint8, RGB.
        labels: H x W, 0 background.
        types: H x W, 0 background; nuclei then get their type's colour instead of one of
            their own.
        palette: colour (RGB) of type 1, 2, ...
        width: of the rim, in pixels.

    Returns:
        A new picture of the same size.
    """
    rim = find_boundaries(labels, mode='inner')
    if width > 1:
        square = np.ones((2 * width - 1, 2 * width - 1), np.uint8)
        rim = (cv2.dilate(rim.view(np.uint8), square) > 0) & (labels > 0)
    drawn = image.copy()
    if types is None:
        drawn[rim] = _colours(labels.max(initial=0) + 1)[labels[rim]]
    else:
        drawn[rim] = np.array([(0, 0, 0), *palette], np.uint8)[types[rim]]
    return drawn


def _colours(count: int) -> np.ndarray:
    """Bright colours, count x 3 uint8: hues from orange to cyan, which stains lack. Steps of
    the golden ratio keep successive ones apart."""
    hues = 15 + 80 * (np.arange(count) * 0.6180339887498949 % 1)  # OpenCV's, to 180
    hsv = np.stack([hues, np.full(count, 255), np.full(count, 255)], -1)
    return cv2.cvtColor(hsv.astype(np.uint8)[None], cv2.COLOR_HSV2RGB)[0]


@VISUALIZERS.register_module()
class NucleiVisualizer(Visualizer):
    """Draws ``pred_nuclei`` of a data sample, and the truth that its ``label_path`` (and
    ``type_path``) names. Types have the colours of ``dataset_meta['palette']``."""

    def add_datasample(self, name: str, image: np.ndarray, data_sample: BaseDataElement,
                       draw_gt: bool = True, draw_pred: bool = True, show: bool = False,
                       wait_time: float = 0, out_file: str | None = None, step: int = 0) -> None:
        """Draw one image: truth on the left, prediction on the right.

        Args:
            name: under which vis backends file the picture.
            image: H x W x 3 uint8, RGB.
            show: on the screen too, for ``wait_time`` seconds (0: until a key is pressed).
            out_file: file to write; None leaves the picture to the vis backends.
            step: of the run, for vis backends.

        Raises:
            DataError: the truth cannot be read.
        """
        panels = []
        if draw_gt:
            types = data_sample.get('type_path')
            panels.append(self._panel(image, read_map(data_sample.label_path),
                                      read_map(types) if types else None))
        if draw_pred:
            found: PixelData = data_sample.pred_nuclei
            types = found.types[0].cpu().numpy() if 'types' in found else None
            panels.append(self._panel(image, found.labels[0].cpu().numpy(), types))
        gap = np.full((len(panels[0]), _GAP, 3), 255, np.uint8)
        drawn = np.concatenate([panels[0], *(part for panel in panels[1:]
                                             for part in (gap, panel))], 1)
        if show:
            self.show(drawn, win_name=name, wait_time=wait_time)
        if out_file is None:
            self.add_image(name, drawn, step)
        else:
            mmcv.imwrite(drawn[..., ::-1], str(Path(out_file)))

    def _panel(self, image: np.ndarray, labels: np.ndarray,
               types: np.ndarray | None) -> np.ndarray:
        times = max(1, -(-_LEAST_SIDE // min(labels.shape)))
        if times > 1:
            image = cv2.resize(image, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC)
            labels, types = (part if part is None else part.repeat(times, 0).repeat(times, 1)
                             for part in (labels, types))
        palette = (self.dataset_meta or {}).get('palette', ())
        return outline(image, labels, types, palette, width=min(times, 2))
