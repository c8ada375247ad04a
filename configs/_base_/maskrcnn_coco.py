"""Mask R-CNN 1x on COCO: 12 epochs of 16 images, 800 x 1333."""
_base_ = ['coco.py', 'maskrcnn.py', 'schedule_1x.py']

protocol = 'maskrcnn_coco'
