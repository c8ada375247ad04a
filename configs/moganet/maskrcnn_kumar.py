"""Mask R-CNN on Kumar with MogaNet-S. Published: nothing found. Settings: ours."""
_base_ = ['../_base_/maskrcnn_kumar.py']

model = dict(backbone=dict(type='MogaNet', arch='small', drop_path_rate=0.1))
