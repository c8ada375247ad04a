"""UperNet with HoVer-Net's outputs on Kumar with UniNet-B1. Published: nothing found. Settings:
ours."""
_base_ = ['../_base_/upernet_kumar.py']

model = dict(backbone=dict(type='UniNet', arch='b1', drop_path_rate=0., norm_eval=True))
