"""UperNet with HoVer-Net's outputs on Kumar with ConvNeXt-T. Published: nothing found.
Settings: ours."""
_base_ = ['../_base_/upernet_kumar.py']

model = dict(backbone=dict(type='ConvNeXt', arch='tiny', drop_path_rate=0.4))
optim_wrapper = dict(paramwise_cfg=dict(
    bias_decay=False, stage_rates=[0.9 ** 7, 0.9 ** 6, 0.9 ** 5, 0.9 ** 4, 0.9 ** 3]))
