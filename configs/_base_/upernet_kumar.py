"""UperNet with HoVer-Net's outputs on Kumar: 16k iterations of 16 crops of 256 x 256, tested
on all 14 test images."""
_base_ = ['nuclei_dense.py', 'upernet_nuclei.py', 'schedule_nuclei.py']

protocol = 'upernet_kumar'
