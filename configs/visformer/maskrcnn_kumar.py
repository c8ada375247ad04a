"""Mask R-CNN on Kumar with VisformerV2-S. Published: nothing found. Settings: ours."""
_base_ = ['../_base_/maskrcnn_kumar.py']

model = dict(backbone=dict(type='Visformer', arch='swin_small_v2', drop_path_rate=0.2))
