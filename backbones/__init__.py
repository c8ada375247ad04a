"""Dense-prediction backbones: one file per system, one contract, one registry."""
from importlib import import_module
from pkgutil import iter_modules

from .base import Backbone
from .errors import UserError
from .registry import available, create, describe, register, systems

# A file in this folder is all that a new system needs.
for _module in iter_modules(__path__):
    import_module(f'{__name__}.{_module.name}')

__all__ = ['Backbone', 'UserError', 'available', 'create', 'describe', 'register', 'systems']
