"""UperNet with HoVer-Net's outputs on CoNSeP, types included: 16k iterations of 16 crops of
256 x 256, tested on all 14 test images."""
_base_ = ['upernet_kumar.py']

protocol = 'upernet_consep'
types = dict(
    classes=('miscellaneous', 'inflammatory', 'epithelial', 'spindle-shaped'),
    palette=[(250, 190, 40), (60, 130, 230), (95, 220, 80), (230, 75, 60)])
train_dataloader = dict(dataset=dict(data_root='data/consep/', metainfo=types))
val_dataloader = dict(dataset=dict(data_root='data/consep/', metainfo=types))
test_dataloader = val_dataloader
