"""Mask R-CNN on CPM-17: 16k iterations of 16 tiles of 256 x 256,
tested on all 32 test images.
Name a system with --backbone."""

_base_ = ['_base_/maskrcnn_cpm17.py']
