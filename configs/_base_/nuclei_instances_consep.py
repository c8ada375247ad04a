"""Nuclei of CoNSeP as instances of four types, as Kumar's; tested on all 14 test images."""
_base_ = ['nuclei_instances.py', 'types_consep.py']

train_dataloader = dict(dataset=dict(data_root='data/consep/', metainfo=_base_.types))
val_dataloader = dict(dataset=dict(data_root='data/consep/', metainfo=_base_.types))
test_dataloader = val_dataloader

val_evaluator = [
    _base_.val_evaluator[0],
    dict(_base_.val_evaluator[1], ann_file='data/consep/annotations/test.json'),
]
test_evaluator = val_evaluator
