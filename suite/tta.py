"""Test-time augmentation for instance segmentation.

mmdet merges the boxes of several views of an image but has no way to merge masks; here
the masks of the merged boxes are predicted in every view and averaged, as detectron2 and
mmdet 2 did.
"""
from __future__ import annotations

import torch
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi, bbox_flip
from mmengine.registry import MODELS
from torch import Tensor

_MIRRORED = dict(horizontal=(-1,), vertical=(-2,), diagonal=(-2, -1))


@MODELS.register_module()
class InstanceTTA(DetTTAModel):
    """Merged boxes and masks of a two-stage detector over scales and flips.

    Args:
        module: the detector (Mask R-CNN or Cascade Mask R-CNN).
        tta_cfg: ``nms`` and ``max_per_img`` for the merged boxes.
    """

    @torch.no_grad()
    def test_step(self, data: dict) -> list[DetDataSample]:
        """Args:
            data: ``inputs`` and ``data_samples``, lists over views of lists over images.
        """
        views = []
        for inputs, samples in zip(data['inputs'], data['data_samples']):
            view = self.module.data_preprocessor(dict(inputs=inputs, data_samples=samples))
            views.append((self.module.extract_feat(view['inputs']), view['data_samples']))
        for features, samples in views:
            self._predict_boxes(features, samples)
        merged = self.merge_preds(list(zip(*(samples for _, samples in views))))
        for image, sample in enumerate(merged):
            self._predict_masks(views, image, sample)
        return merged

    def _predict_boxes(self, features: tuple[Tensor, ...], samples: list) -> None:
        roi_head = self.module.roi_head
        proposals = self.module.rpn_head.predict(features, samples, rescale=False)
        boxes = roi_head.predict_bbox(features, [sample.metainfo for sample in samples],
                                      proposals, roi_head.test_cfg, rescale=True)
        for sample, instances in zip(samples, boxes):
            sample.pred_instances = instances

    def _predict_masks(self, views: list, image: int, merged: DetDataSample) -> None:
        roi_head, found = self.module.roi_head, merged.pred_instances
        if not len(found):
            found.masks = found.bboxes.new_zeros((0, *merged.ori_shape), dtype=torch.bool)
            return
        probabilities = [self._view_masks(features, samples[image], image, found.bboxes)
                         for features, samples in views]
        head = roi_head.mask_head
        head = head[-1] if isinstance(head, torch.nn.ModuleList) else head
        found.masks = head._predict_by_feat_single(
            torch.stack(probabilities).mean(0), found.bboxes.clone(), found.labels,
            dict(scale_factor=(1, 1), ori_shape=merged.ori_shape), roi_head.test_cfg,
            rescale=True, activate_map=True)

    def _view_masks(self, features: tuple[Tensor, ...], sample: DetDataSample, image: int,
                    boxes: Tensor) -> Tensor:
        """Mask probabilities (N x classes x h x w) of boxes given in the original image."""
        roi_head = self.module.roi_head
        if sample.flip:
            boxes = bbox_flip(boxes, sample.ori_shape, sample.flip_direction)
        boxes = boxes * boxes.new_tensor(sample.scale_factor).repeat(2)
        rois = bbox2roi([boxes])
        rois[:, 0] = image
        if isinstance(roi_head.mask_head, torch.nn.ModuleList):
            logits = [roi_head._mask_forward(stage, features, rois)['mask_preds']
                      for stage in range(roi_head.num_stages)]
        else:
            logits = [roi_head._mask_forward(features, rois)['mask_preds']]
        masks = torch.stack([stage.sigmoid() for stage in logits]).mean(0)
        return masks.flip(_MIRRORED[sample.flip_direction]) if sample.flip else masks
