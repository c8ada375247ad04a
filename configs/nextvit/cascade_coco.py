"""Cascade Mask R-CNN 1x on COCO with Next-ViT-S. Published: nothing found. Settings: those of
the authors' Mask R-CNN."""
_base_ = ['../_base_/cascade_coco.py']

model = dict(backbone=dict(type='NextViT', arch='small', drop_path_rate=0.1, frozen_stages=1,
                           norm_eval=True))
