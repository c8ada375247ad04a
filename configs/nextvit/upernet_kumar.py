"""UperNet with HoVer-Net's outputs on Kumar with Next-ViT-S. Published: nothing found.
Settings: ours."""
_base_ = ['../_base_/upernet_kumar.py']

model = dict(backbone=dict(type='NextViT', arch='small', drop_path_rate=0.2, extra_norm=True))
sync_bn = 'torch'
