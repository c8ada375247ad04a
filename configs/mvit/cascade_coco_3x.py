"""Cascade Mask R-CNN 3x on COCO with MViTv2-T. Published: box 52.2, mask 45.0 (paper).
Settings: the authors' (lr 1.6e-4 for 64 images), but that their boxes are class-agnostic,
their RPN has two convolutions and their mask head SyncBN. Drop path of the larger ones: see
maskrcnn_coco_3x."""
_base_ = ['../_base_/cascade_coco_3x.py']

model = dict(backbone=dict(type='MViT', arch='mvitv2_tiny', drop_path_rate=0.2))
optim_wrapper = dict(optimizer=dict(lr=4e-5, weight_decay=0.1))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=36, milestones=[28, 33], gamma=0.1),
]
