"""Mask R-CNN on Kumar with CETNet-T, our reconstruction. Published: nothing found. Settings:
ours."""
_base_ = ['../_base_/maskrcnn_kumar.py']

model = dict(backbone=dict(type='CETNet', arch='tiny', drop_path_rate=0.2))
sync_bn = 'torch'
