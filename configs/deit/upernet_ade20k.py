"""UperNet on ADE20K with DeiT-T. Published: nothing found. Settings: Swin's, since the authors
trained classifiers only; drop path is theirs. BatchNorm is synchronised over processes, since no
pretrained statistics exist."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(backbone=dict(type='DeiT', arch='tiny', drop_path_rate=0.1))
sync_bn = 'torch'
