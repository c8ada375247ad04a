"""Cascade Mask R-CNN 3x on COCO with Swin-T. Published: box 50.4, mask 43.7 (Swin's
README)."""
_base_ = ['../_base_/cascade_coco_3x.py']

model = dict(backbone=dict(type='Swin', arch='tiny', drop_path_rate=0.2))
