"""Cascade Mask R-CNN 1x on COCO with STT-S25, our reconstruction. Published: nothing found.
Settings: those usual for plain transformers (AdamW, no decay of biases, tokens and gains),
since the authors' are not known; with pretrained weights, layer decay 0.75 to 0.8. BatchNorm is
synchronised over processes, since no pretrained statistics exist."""
_base_ = ['../_base_/cascade_coco.py']

model = dict(backbone=dict(type='STT', arch='s25', drop_path_rate=0.1))
optim_wrapper = dict(paramwise_cfg=dict(bias_decay=False))
sync_bn = 'torch'
