"""UperNet on ADE20K with GrafT-style grafts (our reconstruction) on Swin-T. Published: nothing
found. Settings: Swin's, as configs/swin's."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(backbone=dict(type='GrafT', arch='swin_tiny', drop_path_rate=0.3))
