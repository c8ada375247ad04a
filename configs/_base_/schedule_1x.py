"""12 epochs, AdamW, learning rate / 10 after epochs 8 and 11 (Swin's settings)."""
_base_ = ['runtime.py']

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
optim_wrapper = dict(
    type='GuardedOptimWrapper',
    constructor='LayerDecay',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(layer_decay=1.0, bias_decay=True))
default_hooks = dict(
    checkpoint=dict(type='Checkpoint', interval=1, keep=3, best='coco/bbox_mAP'))

mini_schedule = {
    'auto_scale_lr.base_batch_size': 4,
    'optim_wrapper.optimizer': dict(type='AdamW', lr=8e-4, weight_decay=0.05),
    # Nothing is pretrained.
    'optim_wrapper.paramwise_cfg.layer_decay': 1.0,
    'optim_wrapper.paramwise_cfg.stage_rates': None,
    'train_cfg.max_epochs': 6,
    'train_cfg.val_interval': 2,
    'param_scheduler': [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
        dict(type='CosineAnnealingLR', by_epoch=False, begin=20, end=300, T_max=280),
    ],
    'default_hooks.logger.interval': 10,
}
