"""UperNet with HoVer-Net's outputs on Kumar with MogaNet-S. Published: nothing found. Settings:
ours."""
_base_ = ['../_base_/upernet_kumar.py']

model = dict(backbone=dict(type='MogaNet', arch='small', drop_path_rate=0.1))
