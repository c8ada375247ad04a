"""Cascade Mask R-CNN 3x on COCO with ConvNeXt-T. Published: box 50.4, mask 43.7 (ConvNeXt's
README). Settings: the authors'. S takes drop path 0.6, B 0.7 and layer decay 0.8. From
ImageNet-22K the lr is 1e-4, and drop path 0.6, 0.7, 0.8 with B, L, XL, layer decay 0.8 with B."""
_base_ = ['../_base_/cascade_coco_3x.py']

model = dict(backbone=dict(type='ConvNeXt', arch='tiny', drop_path_rate=0.4))
optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(layer_decay=0.7, bias_decay=False))
