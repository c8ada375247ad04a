"""Mask R-CNN 3x on COCO with FCViT-B12. Published: nothing found. Settings: the authors'
for Mask R-CNN 1x, see maskrcnn_coco.py."""
_base_ = ['../_base_/maskrcnn_coco_3x.py']

model = dict(backbone=dict(type='FCViT', arch='b12', drop_path_rate=0.))
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=32)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay=True))
