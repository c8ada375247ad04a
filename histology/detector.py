"""Mask R-CNN and Cascade Mask R-CNN on images of any size, with their nuclei as one map.

A window of a large image is a small image to the detector: it is prepared as a training
tile is, so whatever mmdet's detectors find in pictures, these find in slides. mmdet is
imported here: without its compiled ops, ``suite.ops.install()`` comes first.
"""
from __future__ import annotations

from collections.abc import Sequence

import mmcv
import numpy as np
import torch
from mmdet.models.detectors import CascadeRCNN, MaskRCNN
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from .merge import crop, encode, paint, suppress
from .tiling import Window, progress, windows

_SEAM = 2  # px by which windows may differ about a centre; the copies go in the merge


class _Windowed:
    """What a two-stage detector with masks gains: windows, one set of nuclei, one label map.

    A nucleus counts in the window whose core holds the centre of its box. Masks are decided
    once more for the whole image (``merge.suppress``), and those sure enough are painted
    into a label map (``merge.paint``). ``forward`` stays mmdet's.

    Args:
        test_cfg: besides ``rpn`` and ``rcnn``: ``window``, side of the windows, and
            ``overlap``, least distance of a core from the rim of its window, both in pixels
            of the image; ``magnification`` of every window, that of training; ``score`` from
            which on a nucleus enters the label map (``rcnn.score_thr`` is far lower, since
            average precision wants the unsure ones too).
        kwargs: of mmdet's detector.
    """

    def val_step(self, data: dict) -> list[DetDataSample]:
        return self.test_step(data)

    @torch.no_grad()
    def test_step(self, data: dict) -> list[DetDataSample]:
        """Find the nuclei of every image.

        Args:
            data: ``inputs``, one 3 x H x W uint8 tensor per image, as loaded;
                ``data_samples``, one each.

        Returns:
            the samples with ``pred_instances`` (``bboxes``, ``scores``, ``labels`` by falling
            score and ``masks``, COCO RLE, all in pixels of the image) and ``pred_nuclei``:
            ``labels`` (1 x H x W int32), where there are several classes ``types``
            (1 x H x W uint8, class + 1), and ``scores``, one per nucleus 1..N.
        """
        for image, sample in zip(data['inputs'], data['data_samples'], strict=True):
            found = self._find(image.numpy(force=True))
            shape = tuple(image.shape[1:])
            sample.pred_nuclei = self._label_map(found, shape)
            found.masks = [encode(mask, shape) for mask in found.masks]
            sample.pred_instances = found
        return data['data_samples']

    def _find(self, image: np.ndarray) -> InstanceData:
        """All nuclei of an image (3 x H x W uint8), by falling score; masks are crops."""
        todo = [self._on_grid(window) for window in windows(
            *image.shape[1:], self.test_cfg.window, self.test_cfg.overlap)]
        pieces = []
        with progress(len(todo)) as bar:
            for window in todo:
                pieces.append(self._look(image, window))
                bar.update()
        found = InstanceData.cat(pieces)
        return found[suppress(found.masks, found.scores.numpy())]

    def _on_grid(self, window: Window) -> Window:
        """The window, begun a little earlier: where the network's strides fall on the same
        pixels as in the whole image, it sees the same."""
        grid = self.data_preprocessor.pad_size_divisor
        up, left = window.y % grid, window.x % grid
        return Window(window.y - up, window.x - left, window.height + up, window.width + left,
                      window.core)

    def _look(self, image: np.ndarray, window: Window) -> InstanceData:
        """The nuclei whose centres lie in a window's core."""
        y, x, height, width, core = window
        times = self.test_cfg.magnification
        seen = mmcv.imresize(image[:, y:y + height, x:x + width].transpose(1, 2, 0),
                             (round(width * times), round(height * times)))
        sample = DetDataSample(metainfo=dict(
            ori_shape=(height, width), img_shape=seen.shape[:2], scale_factor=(times, times)))
        tensor = torch.from_numpy(seen).permute(2, 0, 1)
        found = super().test_step(dict(inputs=[tensor], data_samples=[sample]))[0]
        found = found.pred_instances.cpu()
        found.bboxes = found.bboxes + torch.tensor([x, y, x, y])
        found = found[_within(found.bboxes, core)]
        found.masks = [crop(mask, y, x) for mask in found.masks.numpy()]
        return found[np.array([piece.mask.size > 0 for piece in found.masks], bool)]

    def _label_map(self, found: InstanceData, shape: tuple[int, int]) -> PixelData:
        sure = int((found.scores >= self.test_cfg.score).sum())
        labels, painted = paint(found.masks[:sure], shape)
        nuclei = PixelData(metainfo=dict(scores=found.scores.numpy()[painted]),
                           labels=torch.from_numpy(labels)[None])
        if _classes(self.roi_head.bbox_head) > 1:
            types = np.array([0, *(found.labels.numpy()[painted] + 1)], np.uint8)
            nuclei.types = torch.from_numpy(types[labels])[None]
        return nuclei


def _within(boxes: Tensor, core: Sequence[int]) -> Tensor:
    """Which boxes (N x 4, x1 y1 x2 y2) have their centre in a core (y0, x0, y1, x1)."""
    x, y = ((boxes[:, :2] + boxes[:, 2:]) / 2).T
    y0, x0, y1, x1 = core
    return (y >= y0 - _SEAM) & (y < y1 + _SEAM) & (x >= x0 - _SEAM) & (x < x1 + _SEAM)


def _classes(head: nn.Module) -> int:
    return (head[-1] if isinstance(head, nn.ModuleList) else head).num_classes


@MODELS.register_module()
class NucleiMaskRCNN(_Windowed, MaskRCNN):
    """Mask R-CNN (He et al., 2017, arXiv 1703.06870) for nuclei in images of any size."""


@MODELS.register_module()
class NucleiCascadeRCNN(_Windowed, CascadeRCNN):
    """Cascade Mask R-CNN (Cai and Vasconcelos, 2019, arXiv 1906.09756) for nuclei in images
    of any size."""
