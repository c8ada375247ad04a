"""Mask R-CNN on Kumar with HorNet-T 7x7. Published: nothing found. Settings: ours."""
_base_ = ['../_base_/maskrcnn_kumar.py']

model = dict(backbone=dict(type='HorNet', arch='tiny_7x7', drop_path_rate=0.4))
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.95, bias_decay=False))
