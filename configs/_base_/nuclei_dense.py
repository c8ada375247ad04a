"""Nuclei in H&E images for dense networks: training on augmented crops of 256 x 256, testing
on whole images. Kumar; the other data sets differ by ``data_root`` and types.

The augmentation is HoVer-Net's (Graham et al., 2019), with what is ours said in
``histology.transforms``. The crop is ours; theirs has 270 pixels, of which 80 get a label."""
default_scope = 'mmseg'

crop_size = (256, 256)
train_pipeline = [
    dict(type='LoadImage'),
    dict(type='LoadNuclei'),
    dict(type='AffineCrop', crop_size=crop_size),
    dict(type='BlurOrNoise'),
    dict(type='ColourJitter'),
    dict(type='NucleiTargets'),
    dict(type='PackNuclei'),
]
test_pipeline = [
    dict(type='LoadImage'),
    dict(type='PackNuclei'),
]

train_dataloader = dict(
    batch_size=16,
    num_workers=4,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    worker_init_fn=dict(type='seed_worker'),
    dataset=dict(
        type='NucleiImages',
        data_root='data/kumar/',
        ann_file='annotations/train.json',
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='NucleiImages',
        data_root='data/kumar/',
        ann_file='annotations/test.json',
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='NucleiMetric')
test_evaluator = val_evaluator

visualizer = dict(type='NucleiVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(type='LogProcessor', by_epoch=False)

mini_data = {
    'sizes': 0.5,
    'train_dataloader.batch_size': 8,
}
