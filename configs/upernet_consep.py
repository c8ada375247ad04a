"""UperNet with HoVer-Net's outputs on CoNSeP, types included: 16k iterations of 16 crops of
256 x 256, tested on all 14 test images.
Name a system with --backbone."""

_base_ = ['_base_/upernet_consep.py']
