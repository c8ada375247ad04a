"""Cascade Mask R-CNN 3x on COCO with QnA-ViT-Tiny. Published: nothing found. Settings: Swin's,
since the authors published none."""
_base_ = ['../_base_/cascade_coco_3x.py']

model = dict(backbone=dict(type='QnA', arch='tiny', drop_path_rate=0.2))
