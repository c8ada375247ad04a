"""Mask R-CNN 3x on COCO with ResNet-50, multi-scale. Published: box 41.0, mask 37.2
(detectron2's model zoo, whose multi-scale is 640-800 without crops). SGD."""
_base_ = ['../_base_/maskrcnn_coco_3x.py']

model = dict(backbone=dict(type='mmengine.ResNet', arch='resnet50', frozen_stages=1,
                           norm_eval=True))
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay=True))
