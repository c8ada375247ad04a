"""UperNet with HoVer-Net's outputs on Kumar with Swin-T. Published: nothing found. Settings:
ours."""
_base_ = ['../_base_/upernet_kumar.py']

model = dict(backbone=dict(type='Swin', arch='tiny', drop_path_rate=0.3))
