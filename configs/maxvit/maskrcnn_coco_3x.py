"""Mask R-CNN 3x on COCO with MaxViT-T. Published: nothing found. Settings: Swin's; windows keep
their size while images change theirs."""
_base_ = ['../_base_/maskrcnn_coco_3x.py']

model = dict(backbone=dict(type='MaxViT', arch='maxvit_tiny', mode='pad', drop_path_rate=0.2))
