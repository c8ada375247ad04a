"""Mask R-CNN 3x on COCO with EdgeNeXt-S. Published: nothing found. Settings: Swin's, since the
authors published none; drop path and no decay of biases are those of their ImageNet
training."""
_base_ = ['../_base_/maskrcnn_coco_3x.py']

model = dict(backbone=dict(type='EdgeNeXt', arch='small', drop_path_rate=0.1))
optim_wrapper = dict(paramwise_cfg=dict(bias_decay=False))
