"""Mask R-CNN 3x on COCO: 36 epochs of 16 images, multi-scale 480-800 with crops."""
_base_ = ['coco_multiscale.py', 'maskrcnn.py', 'schedule_3x.py']

protocol = 'maskrcnn_coco_3x'
