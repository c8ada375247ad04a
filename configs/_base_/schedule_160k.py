"""160k iterations, AdamW, linear warm-up, polynomial decay of power 1 (Swin's settings)."""
_base_ = ['runtime.py']

train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0., power=1.0, by_epoch=False, begin=1500, end=160000),
]
optim_wrapper = dict(
    type='GuardedOptimWrapper',
    constructor='LayerDecay',
    optimizer=dict(type='AdamW', lr=6e-5, weight_decay=0.01),
    paramwise_cfg=dict(layer_decay=1.0, bias_decay=True))
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(type='Checkpoint', interval=16000, keep=3, best='mIoU'))

mini_schedule = {
    'auto_scale_lr.base_batch_size': 8,
    'optim_wrapper.optimizer': dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    # Nothing is pretrained.
    'optim_wrapper.paramwise_cfg.layer_decay': 1.0,
    'optim_wrapper.paramwise_cfg.stage_rates': None,
    'train_cfg.max_iters': 200,
    'train_cfg.val_interval': 100,
    'default_hooks.checkpoint.interval': 100,
    'param_scheduler': [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=15),
        dict(type='PolyLR', eta_min=0., power=1.0, by_epoch=False, begin=15, end=200),
    ],
    'default_hooks.logger.interval': 10,
}
