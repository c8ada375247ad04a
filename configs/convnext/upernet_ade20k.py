"""UperNet on ADE20K with ConvNeXt-T. Published: 46.0 mIoU, 46.7 with multi-scale test
(ConvNeXt's README; the second one with test_cfg.mode='whole'). Settings: the authors', whose
learning rates decay by stage (for the other variants, six steps lower throughout). S takes
drop path 0.3; B from ImageNet-22K, L and XL crops of 640 with stride 426; XL lr 8e-5."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(
    backbone=dict(type='ConvNeXt', arch='tiny', drop_path_rate=0.4),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)))
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(stage_rates=[0.9 ** 7, 0.9 ** 6, 0.9 ** 5, 0.9 ** 4, 0.9 ** 3],
                       bias_decay=False))
