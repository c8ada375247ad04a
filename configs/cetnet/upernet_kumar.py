"""UperNet with HoVer-Net's outputs on Kumar with CETNet-T, our reconstruction. Published:
nothing found. Settings: ours."""
_base_ = ['../_base_/upernet_kumar.py']

model = dict(backbone=dict(type='CETNet', arch='tiny', drop_path_rate=0.3))
sync_bn = 'torch'
