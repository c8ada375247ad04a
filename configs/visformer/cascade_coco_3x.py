"""Cascade Mask R-CNN 3x on COCO with VisformerV2-S. Published: box 51.6, mask 44.1 (README
of danczs/Visformer). Settings: the authors'."""
_base_ = ['../_base_/cascade_coco_3x.py']

model = dict(backbone=dict(type='Visformer', arch='swin_small_v2', drop_path_rate=0.2))
