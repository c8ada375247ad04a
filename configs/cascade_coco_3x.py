"""Cascade Mask R-CNN 3x on COCO: 36 epochs of 16 images, multi-scale 480-800 with crops.
Name a system with --backbone."""

_base_ = ['_base_/cascade_coco_3x.py']
