"""Dense-prediction backbones: one file per system, one contract, one registry."""
from . import dilateformer, resnet, swin, timm_backbone  # noqa: F401
from .base import Backbone
from .errors import UserError
from .registry import available, create, describe, register, systems

__all__ = ['Backbone', 'UserError', 'available', 'create', 'describe', 'register', 'systems']
