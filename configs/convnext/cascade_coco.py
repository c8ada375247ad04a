"""Cascade Mask R-CNN 1x on COCO with ConvNeXt-T. Published: nothing found. Settings: those of
the authors' 3x."""
_base_ = ['../_base_/cascade_coco.py']

model = dict(backbone=dict(type='ConvNeXt', arch='tiny', drop_path_rate=0.4))
optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(layer_decay=0.7, bias_decay=False))
