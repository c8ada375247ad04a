"""Mask R-CNN on Kumar with MobileViT-XXS. Published: nothing found. Settings: ours."""
_base_ = ['../_base_/maskrcnn_kumar.py']

model = dict(
    data_preprocessor=dict(mean=[0, 0, 0], std=[255, 255, 255]),
    backbone=dict(type='MobileViT', arch='xxs'))
