"""Mask R-CNN 3x on COCO with Swin-T. Published: box 46.0, mask 41.6 (Swin's README)."""
_base_ = ['../_base_/maskrcnn_coco_3x.py']

model = dict(backbone=dict(type='Swin', arch='tiny', drop_path_rate=0.2))
