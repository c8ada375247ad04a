"""UperNet on ADE20K with LeViT-256. Published: nothing found. Settings: Swin's, since the
authors published none; no drop path, as in their ImageNet training. The pyramid pooling stands
on the map of stride 64."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(backbone=dict(type='LeViT', arch='256'))
