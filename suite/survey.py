"""Parameters and MACs of one backbone and of many models around it, in the time of few passes.

A neck and heads see only a backbone's maps: their work is counted once for all backbones with
maps of the same shapes.
"""
from __future__ import annotations

import functools

import torch
from mmengine.config import Config, ConfigDict
from torch import nn

import backbones
from backbones.errors import UserError, closest

from .complexity import (
    Complexity,
    Pass,
    Size,
    build_heads,
    forward,
    head_macs,
    need_size,
    parameters,
)
from .config import CONFIGS, find, wire

Channels = tuple[int, ...]


def protocols() -> list[str]:
    """Names of the protocols, which leave the backbone open."""
    return sorted(path.stem for path in CONFIGS.glob('*.py'))


def need_protocols(names: list[str]) -> None:
    """Raise a UserError where one of them does not exist."""
    for name in names:
        if name not in protocols():
            raise UserError(f'unknown protocol {name!r}{closest(name, protocols())}')


class Survey:
    """A backbone by its name, and models around it; each forward pass is made once."""

    def __init__(self, name: str):
        self.name = name
        with torch.device('meta'):
            self.net = backbones.create(name).eval()
        self._passes: dict[Size, Pass | None] = {}

    def at(self, size: Size, protocol: str | None = None) -> Complexity:
        """Of the backbone, or of a protocol's whole model, for an image of H x W.

        Raises:
            UserError: a side is shorter than 32 pixels.
        """
        need_size(size)
        if size not in self._passes:
            self._passes[size] = forward(self.net, size)
        found, own = self._passes[size], parameters(self.net)
        if protocol is None:
            return Complexity(own, found and found.macs)
        kind = protocol, tuple(self.net.out_channels), tuple(self.net.out_strides)
        total = own + parameters(_heads(*kind))
        if found is None:
            return Complexity(total, None)
        shapes = tuple(tuple(one.shape) for one in found.maps)
        return Complexity(total, found.macs + _head_macs(*kind, size, shapes))


@functools.lru_cache(maxsize=16)
def _heads(protocol: str, channels: Channels, strides: Channels) -> nn.Module:
    from . import components  # noqa: F401  registers what a config may name
    cfg = Config.fromfile(find(protocol), lazy_import=False)
    cfg.model.backbone = ConfigDict(type='KnownMaps', out_channels=channels, out_strides=strides)
    wire(cfg)
    return build_heads(cfg, channels, strides)


@functools.cache
def _head_macs(protocol: str, channels: Channels, strides: Channels, size: Size,
               shapes: tuple[Channels, ...]) -> int:
    maps = [torch.empty(shape, device='meta') for shape in shapes]
    return head_macs(_heads(protocol, channels, strides), maps, size)
