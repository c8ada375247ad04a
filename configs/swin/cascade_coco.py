"""Cascade Mask R-CNN 1x on COCO with Swin-T. Published: box 48.1, mask 41.7 (Swin's README,
multi-scale training)."""
_base_ = ['../_base_/cascade_coco.py']

model = dict(backbone=dict(type='Swin', arch='tiny', drop_path_rate=0.2))
