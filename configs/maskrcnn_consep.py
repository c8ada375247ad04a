"""Mask R-CNN on CoNSeP, types included: 16k iterations of 16 tiles of 256 x 256,
tested on all 14 test images.
Name a system with --backbone."""

_base_ = ['_base_/maskrcnn_consep.py']
