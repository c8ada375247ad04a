"""UperNet on ADE20K: 160k iterations of 16 crops of 512 x 512.
Name a system with --backbone."""

_base_ = ['_base_/upernet_ade20k.py']
