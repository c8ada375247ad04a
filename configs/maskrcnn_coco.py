"""Mask R-CNN 1x on COCO: 12 epochs of 16 images, 800 x 1333.
Name a system with --backbone."""

_base_ = ['_base_/maskrcnn_coco.py']
