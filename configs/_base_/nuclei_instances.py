"""Nuclei of Kumar as instances: tiles of 256 x 256 to train on, enlarged twice, and whole
images to test on, all 14 of them.

All ours: nuclei of 15-45 px (40x) become 30-90 px, the sizes that an FPN's finest levels
are made for; tiles turn, flip, grow or shrink by a fifth at most, and change their stain.
"""
default_scope = 'mmdet'

train_pipeline = [
    dict(type='LoadImage'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='StainJitter', amount=0.2),
    dict(type='Magnify', factor=2, jitter=1.25),
    dict(type='RandomFlip', prob=0.5),
    dict(type='QuarterTurn'),
    dict(type='PackDetInputs'),
]
# The model cuts windows from a whole image and enlarges them, see its test_cfg.
test_pipeline = [
    dict(type='LoadImage'),
    dict(type='PackDetInputs',
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'label_path', 'type_path',
                    'group')),
]

train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    worker_init_fn=dict(type='seed_worker'),
    dataset=dict(
        type='CocoInstances',
        data_root='data/kumar/',
        ann_file='annotations/train_tiles.json',
        data_prefix=dict(img='tiles/'),
        metainfo=dict(classes=('nucleus',), palette=[(60, 130, 230)]),
        # A tile without nuclei shows what none looks like.
        filter_cfg=dict(filter_empty_gt=False),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='NucleiImages',
        data_root='data/kumar/',
        ann_file='annotations/test.json',
        metainfo=dict(classes=('nucleus',), palette=[(60, 130, 230)]),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = [
    dict(type='NucleiMetric'),
    # An image holds hundreds of nuclei, up to 1500; COCO counts 100.
    dict(type='CocoAP', ann_file='data/kumar/annotations/test.json', metric=['bbox', 'segm'],
         proposal_nums=(100, 500, 1500)),
]
test_evaluator = val_evaluator

visualizer = dict(type='NucleiVisualizer', vis_backends=[dict(type='LocalVisBackend')])
log_processor = dict(type='LogProcessor', by_epoch=False)

mini_data = {
    'sizes': 1,
    'train_dataloader.batch_size': 2,
}
