"""Cascade Mask R-CNN (Cai and Vasconcelos, 2019), arXiv 1906.09756, with the heads of
Swin's and ConvNeXt's published runs: four shared convolutions with SyncBN, one linear
layer, GIoU loss on decoded boxes."""
_base_ = ['maskrcnn.py']


def box_head(stds):
    return dict(
        type='ConvFCBBoxHead',
        num_shared_convs=4,
        num_shared_fcs=1,
        fc_out_channels=1024,
        roi_feat_size=7,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=stds),
        reg_class_agnostic=False,
        reg_decoded_bbox=True,
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=10.0))


def rcnn(iou):
    return dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=iou, neg_iou_thr=iou, min_pos_iou=iou,
                      match_low_quality=False, ignore_iof_thr=-1),
        sampler=dict(type='RandomSampler', num=512, pos_fraction=0.25, neg_pos_ub=-1,
                     add_gt_as_proposals=True),
        mask_size=28,
        pos_weight=-1,
        debug=False)


model = dict(
    type='CascadeRCNN',
    rpn_head=dict(loss_bbox=dict(type='SmoothL1Loss', beta=1.0 / 9.0, loss_weight=1.0)),
    roi_head=dict(
        type='CascadeRoIHead',
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=[box_head([0.1, 0.1, 0.2, 0.2]), box_head([0.05, 0.05, 0.1, 0.1]),
                   box_head([0.033, 0.033, 0.067, 0.067])]),
    train_cfg=dict(
        rpn=dict(allowed_border=0),
        rpn_proposal=dict(max_per_img=2000),
        rcnn=[rcnn(0.5), rcnn(0.6), rcnn(0.7)]))

mini_model = {'model.roi_head.bbox_head.num_shared_convs': 1}
