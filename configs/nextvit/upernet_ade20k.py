"""UperNet on ADE20K with Next-ViT-S. Published: 48.1 mIoU, 49.0 with multi-scale test
(Next-ViT's README). Settings: the authors', with a norm after every stage and statistics of
the backbone shared by all processes."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(backbone=dict(type='NextViT', arch='small', drop_path_rate=0.2, extra_norm=True))
sync_bn = 'torch'
