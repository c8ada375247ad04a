"""Mask R-CNN 1x on COCO with Next-ViT-S. Published: box 45.9, mask 41.8 (Next-ViT's README).
Settings: the authors'."""
_base_ = ['../_base_/maskrcnn_coco.py']

model = dict(backbone=dict(type='NextViT', arch='small', drop_path_rate=0.1, frozen_stages=1,
                           norm_eval=True))
