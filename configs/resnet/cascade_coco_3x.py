"""Cascade Mask R-CNN 3x on COCO with ResNet-50, under the heads of this suite's Cascade
protocol. Published: box 46.3, mask 40.1 (the baseline of Swin's paper, arXiv 2103.14030).
SGD as in mmdetection."""
_base_ = ['../_base_/cascade_coco_3x.py']

model = dict(backbone=dict(type='mmengine.ResNet', arch='resnet50', frozen_stages=1,
                           norm_eval=True))
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay=True))
