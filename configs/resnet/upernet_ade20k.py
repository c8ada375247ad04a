"""UperNet on ADE20K with ResNet-50. Published: 42.05 mIoU, 42.78 with multi-scale test
(mmsegmentation's README, whose ResNet-50 has a deep stem). SGD, polynomial decay of power
0.9."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(backbone=dict(type='mmengine.ResNet', arch='resnet50'))
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4),
    paramwise_cfg=dict(norm_decay=True))
param_scheduler = [
    dict(type='PolyLR', eta_min=1e-4, power=0.9, by_epoch=False, begin=0, end=160000),
]
