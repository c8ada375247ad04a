"""Cascade Mask R-CNN 1x on COCO with CETNet-T, our reconstruction. Published: nothing found.
Settings: Swin's, since the authors' are not known. BatchNorm is synchronised over processes,
since no pretrained statistics exist."""
_base_ = ['../_base_/cascade_coco.py']

model = dict(backbone=dict(type='CETNet', arch='tiny', drop_path_rate=0.2))
sync_bn = 'torch'
