"""Mask R-CNN 3x on COCO with MogaNet-S. Published: box 48.5, mask 43.1 (MogaNet's README).
Settings: the authors'. T takes the same; B and L drop path 0.3."""
_base_ = ['../_base_/maskrcnn_coco_3x.py']

model = dict(backbone=dict(type='MogaNet', arch='small', drop_path_rate=0.1))
optim_wrapper = dict(optimizer=dict(lr=2e-4))
