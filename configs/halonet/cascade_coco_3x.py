"""Cascade Mask R-CNN 3x on COCO with HaloNet-50ts. Published: nothing found. Settings: Swin's,
since the authors' are not known; no decay on biases. Statistics of BatchNorm are fixed, as
with ResNet."""
_base_ = ['../_base_/cascade_coco_3x.py']

model = dict(backbone=dict(type='HaloNet', arch='halonet50ts', drop_path_rate=0.1, norm_eval=True))
optim_wrapper = dict(paramwise_cfg=dict(bias_decay=False))
