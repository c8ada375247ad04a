"""Mask R-CNN 3x on COCO with ConvNeXt-T. Published: box 46.2, mask 41.7 (ConvNeXt's README).
Settings: the authors'."""
_base_ = ['../_base_/maskrcnn_coco_3x.py']

model = dict(backbone=dict(type='ConvNeXt', arch='tiny', drop_path_rate=0.4))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.95, bias_decay=False))
