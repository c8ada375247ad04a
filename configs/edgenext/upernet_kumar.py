"""UperNet with HoVer-Net's outputs on Kumar with EdgeNeXt-S. Published: nothing found.
Settings: ours."""
_base_ = ['../_base_/upernet_kumar.py']

model = dict(backbone=dict(type='EdgeNeXt', arch='small', drop_path_rate=0.1))
optim_wrapper = dict(paramwise_cfg=dict(bias_decay=False))
