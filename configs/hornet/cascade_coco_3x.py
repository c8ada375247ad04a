"""Cascade Mask R-CNN 3x on COCO with HorNet-T 7x7. Published: box 51.7, mask 44.8; with
``arch='tiny_gf'`` and the same settings 52.4, 45.6 (HorNet's README). Settings: the
authors'. S takes drop path 0.6; B drop path 0.7, layer decay 0.8; L drop path 0.7, lr 1e-4."""
_base_ = ['../_base_/cascade_coco_3x.py']

model = dict(backbone=dict(type='HorNet', arch='tiny_7x7', drop_path_rate=0.4))
optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(layer_decay=0.7, bias_decay=False))
