"""Mask R-CNN 3x on COCO: 36 epochs of 16 images, multi-scale 480-800 with crops.
Name a system with --backbone."""

_base_ = ['_base_/maskrcnn_coco_3x.py']
