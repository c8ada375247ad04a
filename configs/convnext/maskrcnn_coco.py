"""Mask R-CNN 1x on COCO with ConvNeXt-T. Published: nothing found. Settings: those of the
authors' 3x."""
_base_ = ['../_base_/maskrcnn_coco.py']

model = dict(backbone=dict(type='ConvNeXt', arch='tiny', drop_path_rate=0.4))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.95, bias_decay=False))
