"""Mask R-CNN 1x on COCO with MViTv2-T. Published: nothing found. Settings: those of the
authors' 3x."""
_base_ = ['../_base_/maskrcnn_coco.py']

model = dict(backbone=dict(type='MViT', arch='mvitv2_tiny', drop_path_rate=0.2))
optim_wrapper = dict(optimizer=dict(lr=4e-5, weight_decay=0.1))
