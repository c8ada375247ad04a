"""UperNet (Xiao et al., 2018), arXiv 1807.10221, with an auxiliary FCN head on the
stride-16 map. The backbone, the channels and the number of classes are filled in by
``suite.config``."""
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        size=(512, 512),
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255),
    decode_head=dict(
        type='UPerHead',
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    auxiliary_head=dict(
        type='FCNHead',
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
tta_model = dict(type='SegTTAModel')

mini_model = {
    # From scratch, and too short to be overfitted.
    'model.backbone.frozen_stages': -1,
    'model.backbone.norm_eval': False,
    'model.backbone.drop_path_rate': 0.,
    'model.decode_head.channels': 64,
    'model.auxiliary_head.channels': 64,
}
