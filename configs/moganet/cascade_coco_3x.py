"""Cascade Mask R-CNN 3x on COCO with MogaNet-S. Published: box 51.7, mask 45.1 (MogaNet's
README; with plain box heads 51.4, 44.9). Settings: the authors'. B and L take lr 1e-4,
``layer_decay=0.8, bias_decay=False``, and drop path 0.2 and 0.3."""
_base_ = ['../_base_/cascade_coco_3x.py']

model = dict(backbone=dict(type='MogaNet', arch='small', drop_path_rate=0.1))
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1),
]
