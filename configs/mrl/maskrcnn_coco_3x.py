"""Mask R-CNN 3x on COCO with MRL-like-Tiny (our reconstruction). Published: nothing found.
Settings: Swin's, since the authors' are not known."""
_base_ = ['../_base_/maskrcnn_coco_3x.py']

model = dict(backbone=dict(type='MRL', arch='tiny', drop_path_rate=0.2))
