"""UperNet on ADE20K: 160k iterations of 16 crops of 512 x 512."""
_base_ = ['ade20k.py', 'upernet.py', 'schedule_160k.py']

protocol = 'upernet_ade20k'
