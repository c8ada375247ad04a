"""Cascade Mask R-CNN 3x on COCO with MaxViT-T. Published: only another protocol (see
cascade_coco). Settings: Swin's; windows keep their size while images change theirs."""
_base_ = ['../_base_/cascade_coco_3x.py']

model = dict(backbone=dict(type='MaxViT', arch='maxvit_tiny', mode='pad', drop_path_rate=0.2))
