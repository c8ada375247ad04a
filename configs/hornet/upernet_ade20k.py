"""UperNet on ADE20K with HorNet-T 7x7. Published: 48.1 mIoU, 48.9 with multi-scale test
(HorNet's README). Settings: the authors', whose learning rates decay by stage. Their GF runs
(tiny_gf 49.2, 49.3) take ``filters=(None, None, (24, 13), (12, 7))`` and clip gradients to
norm 1."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(
    backbone=dict(type='HorNet', arch='tiny_7x7', drop_path_rate=0.4),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)))
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(stage_rates=[0.9 ** 7, 0.9 ** 6, 0.9 ** 5, 0.9 ** 4, 0.9 ** 3],
                       bias_decay=False))
