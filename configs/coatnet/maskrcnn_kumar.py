"""Mask R-CNN on Kumar with CoAtNet-0 as timm trained it. Published: nothing found. Settings:
ours."""
_base_ = ['../_base_/maskrcnn_kumar.py']

model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(type='CoAtNet', arch='coatnet_0_rw', drop_path_rate=0.2))
