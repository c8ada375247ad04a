"""UperNet with HoVer-Net's outputs on Kumar with MRL-like-Tiny (our reconstruction), its group
convolutions for rotations on. Published: Dice 0.843 of the authors' network, which this is not
(abstract of arXiv 2208.13975). Settings: ours."""
_base_ = ['../_base_/upernet_kumar.py']

model = dict(backbone=dict(type='MRL', arch='tiny', orientations=4, drop_path_rate=0.3))
