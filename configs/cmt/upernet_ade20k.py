"""UperNet on ADE20K with CMT-S. Published: nothing found.
Settings: Swin's, since the authors' are not published; drop path and no decay of biases are
those of their ImageNet training, and BatchNorm keeps its statistics, since two images per
process make poor ones."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(backbone=dict(type='CMT', arch='cmt_s', drop_path_rate=0.1, norm_eval=True))
optim_wrapper = dict(paramwise_cfg=dict(bias_decay=False))
