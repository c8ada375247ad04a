"""UperNet on ADE20K with FCViT-B12. Published: nothing found (Semantic FPN: 43.3 mIoU, README of
ma-xu/FCViT). Settings: Swin's, since the authors' are for 40k iterations of that lighter head;
no drop path, as there."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(backbone=dict(type='FCViT', arch='b12', drop_path_rate=0.))
