"""Mask R-CNN 1x on COCO with MogaNet-S. Published: box 46.6, mask 42.2 (MogaNet's README).
Settings: the authors'. XT takes drop path 0.05, T 0.1; B 0.2 and L 0.3, both at lr 1e-4."""
_base_ = ['../_base_/maskrcnn_coco.py']

model = dict(backbone=dict(type='MogaNet', arch='small', drop_path_rate=0.1))
optim_wrapper = dict(optimizer=dict(lr=2e-4))
