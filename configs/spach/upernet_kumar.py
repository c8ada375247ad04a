"""UperNet with HoVer-Net's outputs on Kumar with Hybrid-MS-S. Published: nothing found.
Settings: ours."""
_base_ = ['../_base_/upernet_kumar.py']

model = dict(backbone=dict(type='SPACH', arch='ms_hybrid_s', drop_path_rate=0.3))
