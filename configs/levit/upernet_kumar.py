"""UperNet with HoVer-Net's outputs on Kumar with LeViT-256. Published: nothing found. Settings:
ours."""
_base_ = ['../_base_/upernet_kumar.py']

model = dict(backbone=dict(type='LeViT', arch='256'))
