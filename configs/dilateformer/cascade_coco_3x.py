"""Cascade Mask R-CNN 3x on COCO with DilateFormer-Base. Published: box 53.5, mask 46.1
(abstract; a third-party note of the paper reads 53.3 and 46.1). Settings: Swin's, since the
authors published none."""
_base_ = ['../_base_/cascade_coco_3x.py']

model = dict(backbone=dict(type='DilateFormer', arch='base', drop_path_rate=0.2))
optim_wrapper = dict(paramwise_cfg=dict(bias_decay=False))
