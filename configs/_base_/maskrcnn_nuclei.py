"""Mask R-CNN for nuclei in images of any size: anchors from 16 pixels on, 2000 proposals,
fragments at the rim ignored. Settings ours; backbone, channels and classes are filled in by
``suite.config``."""
_base_ = ['maskrcnn.py', 'dense_objects.py']

model = dict(
    type='NucleiMaskRCNN',
    train_cfg=dict(rcnn=dict(assigner=_base_.dense_assigner), **_base_.dense_training),
    **_base_.dense_model)
