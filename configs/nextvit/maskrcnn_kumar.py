"""Mask R-CNN on Kumar with Next-ViT-S. Published: nothing found. Settings: ours."""
_base_ = ['../_base_/maskrcnn_kumar.py']

model = dict(backbone=dict(type='NextViT', arch='small', drop_path_rate=0.1, frozen_stages=1,
                           norm_eval=True))
