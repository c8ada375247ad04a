"""UperNet on ADE20K with Swin-T. Published: 44.51 mIoU, 45.81 with multi-scale test (Swin's
README)."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(backbone=dict(type='Swin', arch='tiny', drop_path_rate=0.3))
