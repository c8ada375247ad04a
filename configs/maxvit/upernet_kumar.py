"""UperNet with HoVer-Net's outputs on Kumar with MaxViT-T. Published: nothing found. Settings:
ours."""
_base_ = ['../_base_/upernet_kumar.py']

model = dict(backbone=dict(type='MaxViT', arch='maxvit_tiny', drop_path_rate=0.2))
