"""Cascade Mask R-CNN on Kumar: 16k iterations of 16 tiles of 256 x 256,
tested on all 14 test images."""
_base_ = ['nuclei_instances.py', 'cascade_nuclei.py', 'schedule_nuclei_instances.py']

protocol = 'cascade_kumar'
