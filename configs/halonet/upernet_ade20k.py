"""UperNet on ADE20K with HaloNet-50ts. Published: nothing found. Settings: Swin's, since the
authors' are not known; no decay on biases."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(backbone=dict(type='HaloNet', arch='halonet50ts', drop_path_rate=0.1))
optim_wrapper = dict(paramwise_cfg=dict(bias_decay=False))
