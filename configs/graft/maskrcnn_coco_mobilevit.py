"""Mask R-CNN 1x on COCO with GrafT-style grafts (our reconstruction) on MobileViT-XXS. Published:
nothing found. Settings: as configs/mobilevit's."""
_base_ = ['../_base_/maskrcnn_coco.py']

model = dict(
    data_preprocessor=dict(mean=[0, 0, 0], std=[255, 255, 255]),
    backbone=dict(type='GrafT', arch='mobilevit_xxs'))
