"""Cascade Mask R-CNN 1x on COCO with CvT-13. Published: nothing found. Settings: Swin's, since
the authors published none; drop path and no decay of biases are those of their ImageNet
training, and BatchNorm keeps its statistics, since two images per process make poor ones. The
level of stride 32 is ours, see backbones/cvt.py."""
_base_ = ['../_base_/cascade_coco.py']

model = dict(backbone=dict(type='CvT', arch='cvt_13', drop_path_rate=0.1, norm_eval=True))
optim_wrapper = dict(paramwise_cfg=dict(bias_decay=False))
