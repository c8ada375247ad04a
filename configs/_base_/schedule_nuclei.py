"""16k iterations, AdamW, linear warm-up, cosine decay. Ours; 16 crops each make 256k, about
as many as HoVer-Net's 100 epochs of 169 patches from 16 images (Adam, 1e-4, a tenth of it
in the second half of each of two phases, the first one with a frozen encoder).

One evaluation, after the last iteration, since it is on test images: nothing is chosen by it."""
_base_ = ['runtime.py']

train_cfg = dict(type='IterBasedTrainLoop', max_iters=16000, val_interval=16000)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(type='CosineAnnealingLR', eta_min=0., by_epoch=False, begin=500, end=16000,
         T_max=15500),
]
optim_wrapper = dict(
    type='GuardedOptimWrapper',
    constructor='LayerDecay',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(layer_decay=1.0, bias_decay=True))
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(type='Checkpoint', interval=2000, keep=2, best=None))

mini_schedule = {
    'auto_scale_lr.base_batch_size': 8,
    'optim_wrapper.optimizer': dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    # Nothing is pretrained.
    'optim_wrapper.paramwise_cfg.layer_decay': 1.0,
    'optim_wrapper.paramwise_cfg.stage_rates': None,
    'train_cfg.max_iters': 200,
    'train_cfg.val_interval': 200,
    'default_hooks.checkpoint.interval': 100,
    'param_scheduler': [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
        dict(type='CosineAnnealingLR', eta_min=0., by_epoch=False, begin=20, end=200, T_max=180),
    ],
    'default_hooks.logger.interval': 10,
}
