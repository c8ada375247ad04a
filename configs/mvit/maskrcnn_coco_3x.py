"""Mask R-CNN 3x on COCO with MViTv2-T. Published: box 48.2, mask 43.8 (paper; box 48.3 in
detectron2's README). Settings: the authors' (lr 1.6e-4 for 64 images), but for the details of
their heads. Their configs take drop path 0.2 for T and S, the paper 0.1 and 0.3; B 0.4; L 0.5,
H 0.6, both at lr 1e-4 for 64 images, with large-scale jitter at 1024."""
_base_ = ['../_base_/maskrcnn_coco_3x.py']

model = dict(backbone=dict(type='MViT', arch='mvitv2_tiny', drop_path_rate=0.2))
optim_wrapper = dict(optimizer=dict(lr=4e-5, weight_decay=0.1))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=36, milestones=[28, 33], gamma=0.1),
]
