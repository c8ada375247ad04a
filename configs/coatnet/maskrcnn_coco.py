"""Mask R-CNN 1x on COCO with CoAtNet-0 as timm trained it, since the paper's
has no weights. Published: nothing found. Settings: Swin's, with the image scale of the weights."""
_base_ = ['../_base_/maskrcnn_coco.py']

model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(type='CoAtNet', arch='coatnet_0_rw', drop_path_rate=0.2))
