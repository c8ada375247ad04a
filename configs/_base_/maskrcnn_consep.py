"""Mask R-CNN on CoNSeP, types included: 16k iterations of 16 tiles of 256 x 256,
tested on all 14 test images."""
_base_ = ['nuclei_instances_consep.py', 'maskrcnn_nuclei.py', 'schedule_nuclei_instances.py']

protocol = 'maskrcnn_consep'
