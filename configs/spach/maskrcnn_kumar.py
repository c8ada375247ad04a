"""Mask R-CNN on Kumar with Hybrid-MS-S. Published: nothing found. Settings: ours."""
_base_ = ['../_base_/maskrcnn_kumar.py']

model = dict(backbone=dict(type='SPACH', arch='ms_hybrid_s', drop_path_rate=0.2))
