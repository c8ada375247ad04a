"""UperNet with HoVer-Net's outputs on CPM-17: 16k iterations of 16 crops of 256 x 256, tested
on all 32 test images."""
_base_ = ['upernet_kumar.py']

protocol = 'upernet_cpm17'
train_dataloader = dict(dataset=dict(data_root='data/cpm17/'))
val_dataloader = dict(dataset=dict(data_root='data/cpm17/'))
test_dataloader = val_dataloader
