"""UperNet with HoVer-Net's outputs on Kumar with FCViT-B12. Published: nothing found. Settings:
ours."""
_base_ = ['../_base_/upernet_kumar.py']

model = dict(backbone=dict(type='FCViT', arch='b12', drop_path_rate=0.))
