"""What every run shares: registration, hooks, randomness, devices."""
custom_imports = dict(imports=['suite.components'], allow_failed_imports=False)

default_hooks = dict(logger=dict(type='LoggerHook', interval=50))
custom_hooks = [
    dict(type='Reseed'),
    dict(type='NonFiniteGuard'),
    dict(type='CheckpointReport'),
    dict(type='ShareStatistics'),
    dict(type='Progress'),
    dict(type='DrawPredictions', images=4),
]

randomness = dict(seed=0)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
# Every published learning rate here is for 16 images; others are scaled linearly.
auto_scale_lr = dict(enable=True, base_batch_size=16)
log_level = 'INFO'
load_from = None
resume = False
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
