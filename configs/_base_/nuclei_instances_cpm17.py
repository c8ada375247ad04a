"""Nuclei of CPM-17 as instances, as Kumar's; tested on all 32 test images."""
_base_ = ['nuclei_instances.py']

train_dataloader = dict(dataset=dict(data_root='data/cpm17/'))
val_dataloader = dict(dataset=dict(data_root='data/cpm17/'))
test_dataloader = val_dataloader

val_evaluator = [
    _base_.val_evaluator[0],
    dict(_base_.val_evaluator[1], ann_file='data/cpm17/annotations/test.json'),
]
test_evaluator = val_evaluator
