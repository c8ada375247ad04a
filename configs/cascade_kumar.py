"""Cascade Mask R-CNN on Kumar: 16k iterations of 16 tiles of 256 x 256,
tested on all 14 test images.
Name a system with --backbone."""

_base_ = ['_base_/cascade_kumar.py']
