"""UperNet on ADE20K with Hybrid-MS-S. Published: nothing found. Settings: Swin's, since the
authors published none."""
_base_ = ['../_base_/upernet_ade20k.py']

model = dict(backbone=dict(type='SPACH', arch='ms_hybrid_s', drop_path_rate=0.3))
