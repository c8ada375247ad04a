"""Mask R-CNN on Kumar with MViTv2-T. Published: nothing found. Settings: ours."""
_base_ = ['../_base_/maskrcnn_kumar.py']

model = dict(backbone=dict(type='MViT', arch='mvitv2_tiny', drop_path_rate=0.2))
