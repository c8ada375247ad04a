"""UperNet on ADE20K with MRL-like-Tiny (our reconstruction). Published: nothing found.
Settings: Swin's, since the authors' are not known."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(backbone=dict(type='MRL', arch='tiny', drop_path_rate=0.3))
