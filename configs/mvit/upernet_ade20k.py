"""UperNet on ADE20K with MViTv2-T. Published: nothing found. Settings: Swin's, since the
authors published none; drop path is that of their detectors."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(backbone=dict(type='MViT', arch='mvitv2_tiny', drop_path_rate=0.2))
