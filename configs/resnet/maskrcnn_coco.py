"""Mask R-CNN 1x on COCO with ResNet-50. Published: box 38.2, mask 34.7 (mmdetection's README).
SGD, the stem and the first stage frozen, statistics of BatchNorm fixed. The scope in the
type keeps mmdetection's own ResNet out."""
_base_ = ['../_base_/maskrcnn_coco.py']

model = dict(backbone=dict(type='mmengine.ResNet', arch='resnet50', frozen_stages=1,
                           norm_eval=True))
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay=True))
