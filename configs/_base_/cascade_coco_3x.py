"""Cascade Mask R-CNN 3x on COCO: 36 epochs of 16 images, multi-scale 480-800 with crops."""
_base_ = ['coco_multiscale.py', 'cascade.py', 'schedule_3x.py']

protocol = 'cascade_coco_3x'
