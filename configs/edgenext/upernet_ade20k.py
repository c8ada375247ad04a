"""UperNet on ADE20K with EdgeNeXt-S. Published: nothing found (with DeepLabv3 80.2 mIoU on VOC
2012, second-hand). Settings: Swin's, since the authors published none; drop path and no decay
of biases are those of their ImageNet training."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(backbone=dict(type='EdgeNeXt', arch='small', drop_path_rate=0.1))
optim_wrapper = dict(paramwise_cfg=dict(bias_decay=False))
