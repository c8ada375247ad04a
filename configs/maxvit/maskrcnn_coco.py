"""Mask R-CNN 1x on COCO with MaxViT-T. Published: nothing found. Settings: Swin's, since the
authors' detectors are of another kind (see cascade_coco)."""
_base_ = ['../_base_/maskrcnn_coco.py']

model = dict(backbone=dict(type='MaxViT', arch='maxvit_tiny', drop_path_rate=0.2))
