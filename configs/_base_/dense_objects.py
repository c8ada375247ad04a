"""What a two-stage detector changes for hundreds of small objects in every image; ours."""
dense_model = dict(
    rpn_head=dict(anchor_generator=dict(scales=[4])),
    test_cfg=dict(
        # Proposals are chosen by their score: a number of them would mean less per nucleus
        # in a larger window, and another result. The limits bound memory.
        rpn=dict(nms_pre=10000, max_per_img=4000, nms=dict(score_threshold=0.2)),
        # 0.05 for average precision; label maps take what the model is sure of (0.3-0.5: to
        # be chosen on annotations/holdout.json). A window holds 90 nuclei at CoNSeP's mean
        # density, 220 where an image of 1000 x 1000 has 1500.
        rcnn=dict(score_thr=0.05, max_per_img=500),
        score=0.4,
        # Cores of 256 pixels with more than a nucleus around them, enlarged as in training.
        window=384,
        overlap=64,
        magnification=2))
# Fragments at the rim of a tile are crowds: neither nuclei nor background.
dense_assigner = dict(ignore_iof_thr=0.5)
dense_training = dict(
    rpn=dict(assigner=dense_assigner, sampler=dict(num=512)),
    rpn_proposal=dict(nms_pre=2000, max_per_img=2000))

mini_objects = {
    # Nuclei of 14-34 pixels: large enough for the finest level as they are.
    'train_dataloader.dataset.pipeline.factor': 1,
    'model.test_cfg.magnification': 1,
    # The other trials' limits of proposals are for a handful of objects.
    'model.train_cfg.rpn_proposal.max_per_img': 300,
    'model.train_cfg.rpn.sampler.num': 128,
    'model.train_cfg.rcnn.sampler.num': 128,
    'model.test_cfg.rpn.nms_pre': 10000,
    'model.test_cfg.rpn.max_per_img': 4000,
    # Statistics of a group would be those of the window.
    'model.neck.norm_cfg': dict(type='BN'),
}
