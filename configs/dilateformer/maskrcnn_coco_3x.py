"""Mask R-CNN 3x on COCO with DilateFormer-Base. Published: box 49.9, mask 43.7 (read in a
third-party note of the paper). Settings: Swin's, since the authors published none."""
_base_ = ['../_base_/maskrcnn_coco_3x.py']

model = dict(backbone=dict(type='DilateFormer', arch='base', drop_path_rate=0.2))
optim_wrapper = dict(paramwise_cfg=dict(bias_decay=False))
