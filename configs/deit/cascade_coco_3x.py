"""Cascade Mask R-CNN 3x on COCO with DeiT-T. Published: nothing found. Settings: Swin's, since the
authors trained classifiers only; drop path is theirs. BatchNorm is synchronised over processes,
since no pretrained statistics exist."""
_base_ = ['../_base_/cascade_coco_3x.py']

model = dict(backbone=dict(type='DeiT', arch='tiny', drop_path_rate=0.1))
sync_bn = 'torch'
