"""Mask R-CNN 1x on COCO with DilateFormer-Tiny. Published: box 44.9, mask 40.9 (schedule of
that ablation not stated; read in a third-party note of the paper). Settings: Swin's, since
the authors published none."""
_base_ = ['../_base_/maskrcnn_coco.py']

model = dict(backbone=dict(type='DilateFormer', arch='tiny', drop_path_rate=0.2))
optim_wrapper = dict(paramwise_cfg=dict(bias_decay=False))
