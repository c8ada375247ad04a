"""UperNet on ADE20K with MogaNet-S. Published: 49.2 mIoU (MogaNet's README). Settings: the
authors', but that they resize test images to multiples of 32. Drop path is 0.05 for XT, 0.1
for T, 0.2 for B, 0.3 for L, 0.4 for XL."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(backbone=dict(type='MogaNet', arch='small', drop_path_rate=0.1))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
