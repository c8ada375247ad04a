"""Mask R-CNN 3x on COCO with Next-ViT-S. Published: box 48.0, mask 43.2 (Next-ViT's README).
Settings: the authors'."""
_base_ = ['../_base_/maskrcnn_coco_3x.py']

model = dict(backbone=dict(type='NextViT', arch='small', drop_path_rate=0.1, frozen_stages=1,
                           norm_eval=True))
