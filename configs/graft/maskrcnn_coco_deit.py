"""Mask R-CNN 1x on COCO with GrafT-style grafts (our reconstruction) on DeiT-T. Published: nothing
found. Settings: as configs/deit's."""
_base_ = ['../_base_/maskrcnn_coco.py']

model = dict(backbone=dict(type='GrafT', arch='deit_tiny', drop_path_rate=0.1))
sync_bn = 'torch'
