"""Mask R-CNN on Kumar with STT-S25, our reconstruction. Published: nothing found. Settings:
ours."""
_base_ = ['../_base_/maskrcnn_kumar.py']

model = dict(backbone=dict(type='STT', arch='s25', drop_path_rate=0.1))
optim_wrapper = dict(paramwise_cfg=dict(bias_decay=False))
sync_bn = 'torch'
