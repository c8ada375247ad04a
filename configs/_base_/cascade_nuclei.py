"""Cascade Mask R-CNN for nuclei in images of any size, changed as Mask R-CNN is for them."""
_base_ = ['cascade.py', 'dense_objects.py']

model = dict(
    type='NucleiCascadeRCNN',
    train_cfg=dict(
        rcnn=[dict(stage, assigner=dict(stage['assigner'], **_base_.dense_assigner))
              for stage in _base_.model.train_cfg.rcnn],
        **_base_.dense_training),
    **_base_.dense_model)
