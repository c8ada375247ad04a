"""Mask R-CNN 1x on COCO with VisformerV2-S. Published: box 44.8, mask 40.7 (README of
danczs/Visformer). Settings: the authors'."""
_base_ = ['../_base_/maskrcnn_coco.py']

model = dict(backbone=dict(type='Visformer', arch='swin_small_v2', drop_path_rate=0.2))
