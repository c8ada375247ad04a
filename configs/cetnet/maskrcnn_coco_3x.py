"""Mask R-CNN 3x on COCO with CETNet-T, our reconstruction. Published for the authors' CETNet-T,
not for this reconstruction: box 46.9, mask 41.6 (from arXiv 2207.13317, by
family_data/CETNet.yml of igm503/heedless-backbones; 36 epochs, multi-scale or not is not
recorded). Settings: Swin's, since the authors' are not known. BatchNorm is synchronised over
processes, since no pretrained statistics exist."""
_base_ = ['../_base_/maskrcnn_coco_3x.py']

model = dict(backbone=dict(type='CETNet', arch='tiny', drop_path_rate=0.2))
sync_bn = 'torch'
