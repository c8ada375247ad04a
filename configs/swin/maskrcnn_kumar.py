"""Mask R-CNN on Kumar with Swin-T. Published: nothing found. Settings: ours."""
_base_ = ['../_base_/maskrcnn_kumar.py']

model = dict(backbone=dict(type='Swin', arch='tiny', drop_path_rate=0.2))
