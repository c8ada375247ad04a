"""Mask R-CNN on Kumar with LeViT-256. Published: nothing found. Settings: ours."""
_base_ = ['../_base_/maskrcnn_kumar.py']

model = dict(backbone=dict(type='LeViT', arch='256', norm_eval=True))
