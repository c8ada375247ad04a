"""Cascade Mask R-CNN 1x on COCO with MobileViT-XXS. Published: nothing found (the authors'
detector is SSDLite, their segmentor DeepLabv3). Settings: Swin's, but no drop path, as in the
authors' pretraining; pixels in [0, 1], as there."""
_base_ = ['../_base_/cascade_coco.py']

model = dict(
    data_preprocessor=dict(mean=[0, 0, 0], std=[255, 255, 255]),
    backbone=dict(type='MobileViT', arch='xxs'))
