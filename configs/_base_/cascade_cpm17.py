"""Cascade Mask R-CNN on CPM-17: 16k iterations of 16 tiles of 256 x 256,
tested on all 32 test images."""
_base_ = ['nuclei_instances_cpm17.py', 'cascade_nuclei.py', 'schedule_nuclei_instances.py']

protocol = 'cascade_cpm17'
