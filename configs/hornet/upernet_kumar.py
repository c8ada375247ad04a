"""UperNet with HoVer-Net's outputs on Kumar with HorNet-T 7x7. Published: nothing found.
Settings: ours."""
_base_ = ['../_base_/upernet_kumar.py']

model = dict(backbone=dict(type='HorNet', arch='tiny_7x7', drop_path_rate=0.4))
optim_wrapper = dict(paramwise_cfg=dict(
    bias_decay=False, stage_rates=[0.9 ** 7, 0.9 ** 6, 0.9 ** 5, 0.9 ** 4, 0.9 ** 3]))
