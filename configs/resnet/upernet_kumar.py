"""UperNet with HoVer-Net's outputs on Kumar with ResNet-50. Published: nothing found. Settings:
ours."""
_base_ = ['../_base_/upernet_kumar.py']

model = dict(backbone=dict(type='mmengine.ResNet', arch='resnet50'))
