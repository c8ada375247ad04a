"""Mask R-CNN 1x on COCO with CETNet-T, our reconstruction. Published for the authors' CETNet-T,
not for this reconstruction: box 45.5, mask 40.7 (from arXiv 2207.13317, by
family_data/CETNet.yml of igm503/heedless-backbones). Settings: Swin's, since the authors' are
not known. BatchNorm is synchronised over processes, since no pretrained statistics exist."""
_base_ = ['../_base_/maskrcnn_coco.py']

model = dict(backbone=dict(type='CETNet', arch='tiny', drop_path_rate=0.2))
sync_bn = 'torch'
