"""The dense models' schedule for detectors: 16k iterations of 16 tiles, which the trial of
minutes shortens further, since its tiles are whole images."""
_base_ = ['schedule_nuclei.py']

mini_schedule = {
    'auto_scale_lr.base_batch_size': 2,
    'train_cfg.max_iters': 200,
    'train_cfg.val_interval': 200,
    'default_hooks.checkpoint.interval': 100,
    'param_scheduler': [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
        dict(type='CosineAnnealingLR', eta_min=0., by_epoch=False, begin=20, end=200, T_max=180),
    ],
}
