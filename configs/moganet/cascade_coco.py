"""Cascade Mask R-CNN 1x on COCO with MogaNet-S. Published: nothing found. Settings: the
authors' for Mask R-CNN 1x."""
_base_ = ['../_base_/cascade_coco.py']

model = dict(backbone=dict(type='MogaNet', arch='small', drop_path_rate=0.1))
optim_wrapper = dict(optimizer=dict(lr=2e-4))
