"""UperNet (Xiao et al., 2018), arXiv 1807.10221, carried on to full resolution, with the
outputs and losses of HoVer-Net (Graham et al., 2019, Med. Image Anal. 58): probability of
nuclei, horizontal and vertical distances and, where the data has types, types. The backbone,
the channels and the number of classes are filled in by ``suite.config``.

Options: ``model.decode_head.type=BoundaryHead`` learns background, inside and boundary
instead; ``model.decode_head.crossed=True`` takes the gradient loss as HoVer-Net's code has it;
``model.decode_head.threshold`` and ``.edge`` cut the nuclei (0.5 and 0.4, HoVer-Net's; choose
others on ``annotations/holdout.json`` after training on ``annotations/fit.json``);
``model.decode_head.num_classes=1`` leaves types out."""
model = dict(
    type='NucleiSegmentor',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        size_divisor=1,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True),
    decode_head=dict(
        type='HoverHead',
        pool_scales=(1, 2, 3, 6),
        channels=512,
        fine_channels=32,
        dropout_ratio=0.1,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False),
    train_cfg=dict(),
    test_cfg=dict(window=512, overlap=64, batch=2))

mini_model = {
    # From scratch, and too short to be overfitted.
    'model.backbone.frozen_stages': -1,
    'model.backbone.norm_eval': False,
    'model.backbone.drop_path_rate': 0.,
    'model.decode_head.channels': 32,
    'model.decode_head.fine_channels': 8,
}
