"""UperNet with HoVer-Net's outputs on Kumar with DeiT-T. Published: nothing found. Settings:
ours."""
_base_ = ['../_base_/upernet_kumar.py']

model = dict(backbone=dict(type='DeiT', arch='tiny', drop_path_rate=0.1))
sync_bn = 'torch'
