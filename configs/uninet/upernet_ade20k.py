"""UperNet on ADE20K with UniNet-B1. Published: nothing found. Settings: Swin's, since
the authors published none for dense tasks; no drop path, as in their ImageNet training of B1,
and BatchNorm keeps its statistics, since two images per process make poor ones."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(backbone=dict(type='UniNet', arch='b1', drop_path_rate=0., norm_eval=True))
