"""Cascade Mask R-CNN 1x on COCO with VisformerV2-S. Published: box 49.3, mask 42.3 (README
of danczs/Visformer, multi-scale training: its images are cascade_coco_3x's). Settings: the
authors', who take no drop path here."""
_base_ = ['../_base_/cascade_coco.py']

model = dict(backbone=dict(type='Visformer', arch='swin_small_v2', drop_path_rate=0.))
