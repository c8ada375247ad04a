"""UperNet on ADE20K with QnA-ViT-Tiny. Published: nothing found. Settings: Swin's, since the
authors published none."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(backbone=dict(type='QnA', arch='tiny', drop_path_rate=0.3))
