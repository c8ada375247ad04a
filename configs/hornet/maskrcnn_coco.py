"""Mask R-CNN 1x on COCO with HorNet-T 7x7. Published: nothing found. Settings: learning rate
and layer decay of the authors' neck ablation with Mask R-CNN 1x, drop path of their Cascade
runs."""
_base_ = ['../_base_/maskrcnn_coco.py']

model = dict(backbone=dict(type='HorNet', arch='tiny_7x7', drop_path_rate=0.4))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.95, bias_decay=False))
