"""Mask R-CNN 3x on COCO with Hybrid-MS-S. Published: nothing found. Settings: Swin's, since the
authors published none."""
_base_ = ['../_base_/maskrcnn_coco_3x.py']

model = dict(backbone=dict(type='SPACH', arch='ms_hybrid_s', drop_path_rate=0.2))
