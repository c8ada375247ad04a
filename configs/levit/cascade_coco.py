"""Cascade Mask R-CNN 1x on COCO with LeViT-256. Published: nothing found. Settings:
EfficientFormer's detection config, whose attention is LeViT's (AdamW, 2e-4, weight decay
1e-4), since the authors published none; BatchNorm keeps its statistics, since two images per
process make poor ones. The map of stride 64 takes the place of FPN's pooled level."""
_base_ = ['../_base_/cascade_coco.py']

model = dict(backbone=dict(type='LeViT', arch='256', norm_eval=True))
optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=1e-4))
