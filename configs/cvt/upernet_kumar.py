"""UperNet with HoVer-Net's outputs on Kumar with CvT-13. Published: nothing found. Settings:
ours."""
_base_ = ['../_base_/upernet_kumar.py']

model = dict(backbone=dict(type='CvT', arch='cvt_13', drop_path_rate=0.1, norm_eval=True))
optim_wrapper = dict(paramwise_cfg=dict(bias_decay=False))
