"""Mask R-CNN 1x on COCO with Swin-T. Published: box 43.7, mask 39.8 (Swin's README; its
own 1x config trains multi-scale, use maskrcnn_coco_3x's data for that)."""
_base_ = ['../_base_/maskrcnn_coco.py']

model = dict(backbone=dict(type='Swin', arch='tiny', drop_path_rate=0.2))
