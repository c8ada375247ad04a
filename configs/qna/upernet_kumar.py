"""UperNet with HoVer-Net's outputs on Kumar with QnA-ViT-Tiny. Published: nothing found.
Settings: ours."""
_base_ = ['../_base_/upernet_kumar.py']

model = dict(backbone=dict(type='QnA', arch='tiny', drop_path_rate=0.3))
