"""The registered backbones and the names by which people ask for them."""
from __future__ import annotations

import inspect
from collections.abc import Iterator

from mmengine.registry import MODELS

from .base import Backbone
from .errors import UserError, closest

_SYSTEMS: dict[str, type[Backbone]] = {}


def register(cls: type[Backbone], archs: dict[str, dict]) -> type[Backbone]:
    """Give a system its variants and its place in mmengine's root registry."""
    cls.archs = archs
    _SYSTEMS[cls.__name__] = cls
    return MODELS.register_module(module=cls)


def systems() -> dict[str, type[Backbone]]:
    """Registered systems by class name."""
    return dict(_SYSTEMS)


def _names() -> Iterator[tuple[str, dict]]:
    for system, cls in _SYSTEMS.items():
        for arch in cls.archs:
            prefix = '' if arch.startswith(system.lower()) else f'{system.lower()}_'
            yield prefix + arch, dict(type=system, arch=arch)


def available() -> list[str]:
    """Names that ``create`` takes, besides ``timm/NAME``."""
    return sorted(name for name, _ in _names())


def smallest() -> list[str]:
    """Name of each system's smallest variant: the one that its constructor builds, or, of one
    that builds none unasked, the first."""
    def default(system: str) -> str:
        cls = _SYSTEMS[system]
        return inspect.signature(cls).parameters['arch'].default or next(iter(cls.archs))

    return sorted(name for name, settings in _names()
                  if settings['arch'] == default(settings['type']))


def describe(name: str) -> dict:
    """Name -> model config: ``'swin_tiny'`` -> ``dict(type='Swin', arch='tiny')``."""
    if name.startswith('timm/'):
        return dict(type='TimmBackbone', name=name.removeprefix('timm/'))
    by_name = dict(_names())
    if name not in by_name:
        raise UserError(f'unknown backbone {name!r}{closest(name, by_name)}; or timm/NAME for '
                        'any timm model')
    return by_name[name]


def create(name: str, **options) -> Backbone:
    """Build a backbone by name: ``create('dilateformer_tiny', drop_path_rate=0.2)``."""
    settings = {**describe(name), **options}
    return MODELS.get(settings.pop('type'))(**settings)
