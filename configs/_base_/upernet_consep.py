"""UperNet with HoVer-Net's outputs on CoNSeP, types included: 16k iterations of 16 crops of
256 x 256, tested on all 14 test images."""
_base_ = ['upernet_kumar.py', 'types_consep.py']

protocol = 'upernet_consep'
train_dataloader = dict(dataset=dict(data_root='data/consep/', metainfo=_base_.types))
val_dataloader = dict(dataset=dict(data_root='data/consep/', metainfo=_base_.types))
test_dataloader = val_dataloader

mini_types = {
    # AdamW moves a weight by its learning rate at most; in 200 steps of a narrow head that is
    # too little to tell types apart.
    'model.decode_head.fine_channels': 16,
    'optim_wrapper.optimizer.lr': 3e-3,
}
