"""Mask R-CNN 3x on COCO with GrafT-style grafts (our reconstruction) on Swin-T. Published: nothing
found. Settings: Swin's, as configs/swin's."""
_base_ = ['../_base_/maskrcnn_coco_3x.py']

model = dict(backbone=dict(type='GrafT', arch='swin_tiny', drop_path_rate=0.2))
