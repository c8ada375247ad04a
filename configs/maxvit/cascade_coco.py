"""Cascade Mask R-CNN 1x on COCO with MaxViT-T. Published, but at 896 x 896 with batches of 256
and two cascaded heads on the maps of stages 2 to 4: box 52.1, mask 44.6 (paper, Table 4).
Settings: Swin's."""
_base_ = ['../_base_/cascade_coco.py']

model = dict(backbone=dict(type='MaxViT', arch='maxvit_tiny', drop_path_rate=0.2))
