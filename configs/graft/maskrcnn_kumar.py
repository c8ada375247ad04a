"""Mask R-CNN on Kumar with GrafT-style grafts (our reconstruction) on Swin-T. Published:
nothing found. Settings: ours."""
_base_ = ['../_base_/maskrcnn_kumar.py']

model = dict(backbone=dict(type='GrafT', arch='swin_tiny', drop_path_rate=0.2))
