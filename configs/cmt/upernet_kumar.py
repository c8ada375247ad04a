"""UperNet with HoVer-Net's outputs on Kumar with CMT-S. Published: nothing found. Settings:
ours."""
_base_ = ['../_base_/upernet_kumar.py']

model = dict(backbone=dict(type='CMT', arch='cmt_s', drop_path_rate=0.1, norm_eval=True))
optim_wrapper = dict(paramwise_cfg=dict(bias_decay=False))
