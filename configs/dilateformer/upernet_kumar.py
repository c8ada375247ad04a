"""UperNet with HoVer-Net's outputs on Kumar with DilateFormer-Tiny. Published: nothing found.
Settings: ours."""
_base_ = ['../_base_/upernet_kumar.py']

model = dict(backbone=dict(type='DilateFormer', arch='tiny', drop_path_rate=0.2))
optim_wrapper = dict(paramwise_cfg=dict(bias_decay=False))
