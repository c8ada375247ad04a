"""UperNet on ADE20K with CETNet-T, our reconstruction. Published for the authors' CETNet-T, not
for this reconstruction: 46.5 mIoU, 47.9 with multi-scale test (from arXiv 2207.13317, by
family_data/CETNet.yml of igm503/heedless-backbones). Settings: Swin's, since the authors' are
not known. BatchNorm is synchronised over processes, since no pretrained statistics exist."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(backbone=dict(type='CETNet', arch='tiny', drop_path_rate=0.3))
sync_bn = 'torch'
