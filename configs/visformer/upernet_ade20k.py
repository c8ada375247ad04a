"""UperNet on ADE20K with VisformerV2-S. Published: nothing found. Settings: Swin's, since
the authors train their detectors as Swin's; drop path as in their detectors."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(backbone=dict(type='Visformer', arch='swin_small_v2', drop_path_rate=0.2))
