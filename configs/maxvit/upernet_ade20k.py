"""UperNet on ADE20K with MaxViT-T. Published: nothing found. Settings: Swin's."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(backbone=dict(type='MaxViT', arch='maxvit_tiny', drop_path_rate=0.2))
