"""UperNet on ADE20K with DilateFormer-Tiny. Published: 45.84 mIoU in an ablation whose
framework is not stated (read in a third-party note of the paper). Settings: Swin's, since
the authors published none."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(backbone=dict(type='DilateFormer', arch='tiny', drop_path_rate=0.3))
optim_wrapper = dict(paramwise_cfg=dict(bias_decay=False))
