"""Mask R-CNN on Kumar with ResNet-50. Published: nothing found. Settings: ours."""
_base_ = ['../_base_/maskrcnn_kumar.py']

model = dict(backbone=dict(type='mmengine.ResNet', arch='resnet50', frozen_stages=1,
                           norm_eval=True))
