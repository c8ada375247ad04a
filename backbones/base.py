"""The contract that every backbone keeps.

A backbone turns images (B x 3 x H x W, any H, W >= 32) into a tuple of contiguous
NCHW maps, one per out index. Contiguous, because compiled RoIAlign kernels misread
channels-last memory without a word.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .checkpoint import load_pretrained
from .errors import UserError, closest

_STAGE = re.compile(r'(?:stages|layers)\.(\d+)\.')
_BLOCK = re.compile(r'(?:stages|layers)\.(\d+)\.blocks\.(\d+)\.')
_OUTPUT = re.compile(r'norm\d+\.')


@contextmanager
def _statistics_kept(module: nn.Module):
    """A second pass over a batch saves the same tensors, and counts in no BatchNorm."""
    norms = [(m, m.momentum, m.num_batches_tracked) for m in module.modules()
             if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm, _, batches in norms:
        norm.momentum, norm.num_batches_tracked = 0., batches.clone()
    try:
        yield
    finally:
        for norm, *state in norms:
            norm.momentum, norm.num_batches_tracked = state


class Backbone(nn.Module):
    """Base of all backbones.

    A subclass calls ``super().__init__`` first, sets ``depths`` (blocks per stage),
    ``out_channels`` and ``out_strides`` (one entry per out index), builds its modules,
    and calls ``freeze()`` last. It implements ``forward`` and, where its modules are
    not called ``stages.S.blocks.B`` and ``normS``, ``stage_id`` and ``layer_id``.

    Args:
        out_indices: stages whose maps are returned, ascending.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n
            stages: no gradients, norms and drop paths in eval mode.
        norm_eval: keep the statistics of every BatchNorm fixed while training.
        with_cp: activation checkpointing: less memory, more time, equal results.
        init_cfg: None, or ``dict(type='Pretrained', checkpoint=PATH)``.
    """

    archs: dict[str, dict] = {}
    added: tuple[str, ...] = ()  # prefixes of modules that no official checkpoint holds
    reconstruction = False  # built around what a paper tells, where nobody has its network
    depths: Sequence[int]
    out_channels: tuple[int, ...]
    out_strides: tuple[int, ...]

    def __init__(self, out_indices: Sequence[int], frozen_stages: int = -1,
                 norm_eval: bool = False, with_cp: bool = False,
                 init_cfg: dict | None = None):
        super().__init__()
        self.out_indices = tuple(out_indices)
        if not self.out_indices or list(self.out_indices) != sorted(set(self.out_indices)):
            raise UserError(f'{type(self).__name__}: out_indices must be ascending and not '
                            f'empty, got {self.out_indices}')
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.init_cfg = init_cfg

    def settings(self, arch: str | dict, overrides: dict) -> dict:
        """The settings of a variant: ``arch`` is a key of ARCHS or a complete dict."""
        system = type(self).__name__
        known = next(iter(self.archs.values()))
        if isinstance(arch, str):
            if arch not in self.archs:
                raise UserError(f'{system} has no arch {arch!r}{closest(arch, self.archs)}')
            arch = self.archs[arch]
        elif missing := [key for key in known if key not in arch]:
            raise UserError(f'{system}: the arch dict lacks {", ".join(missing)}')
        for key in (*arch, *overrides):
            if key not in known:
                raise UserError(f'{system} has no setting {key!r}{closest(key, known)}')
        settings = {**arch, **overrides}
        if self.out_indices[-1] >= len(settings['depths']):
            raise UserError(f'{system} has {len(settings["depths"])} stages, out_indices '
                            f'{self.out_indices} ask for more')
        return settings

    def freeze(self) -> None:
        """Take the frozen stages out of training; the last line of a constructor."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad = self.stage_id(name) > self.frozen_stages

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        for name, module in self.named_modules():
            frozen = name and self.stage_id(name + '.') <= self.frozen_stages
            if frozen or (self.norm_eval and isinstance(module, _BatchNorm)):
                module.training = False
        return self

    def init_weights(self) -> None:
        """Load ``init_cfg``'s checkpoint, if there is one; constructors initialise."""
        if self.init_cfg:
            options = dict(self.init_cfg)
            if options.pop('type', None) != 'Pretrained':
                raise UserError(f"{type(self).__name__}: init_cfg must be dict(type='Pretrained'"
                                f', checkpoint=PATH), got {self.init_cfg}')
            load_pretrained(self, **options)

    def run(self, module: Callable[..., Tensor], *args) -> Tensor:
        """Call ``module``; under ``with_cp`` its insides are recomputed for the backward
        pass instead of kept."""
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(module, *args, use_reentrant=False,
                              context_fn=lambda: (nullcontext(), _statistics_kept(module)))
        return module(*args)

    def stage_id(self, name: str) -> int:
        """Stage of a parameter or module: 0 stem, 1 ... stages, beyond them outputs."""
        if match := _STAGE.match(name):
            return int(match[1]) + 1
        outside = _OUTPUT.match(name) or name in ('stages.', 'layers.')
        return len(self.depths) + 1 if outside else 0

    @property
    def num_layers(self) -> int:
        """Number of blocks; layer ids run from 0 (stem) to ``num_layers`` + 1 (outputs)."""
        return sum(self.depths)

    def layer_id(self, name: str) -> int:
        """Depth of a parameter, by which layer-wise learning-rate decay scales it.
        What stands between two stages counts with the stage that holds it."""
        stage = self.stage_id(name)
        if stage == 0 or stage > len(self.depths):
            return 0 if stage == 0 else self.num_layers + 1
        if match := _BLOCK.match(name):
            return sum(self.depths[:stage - 1]) + int(match[2]) + 1
        return sum(self.depths[:stage])

    def no_weight_decay(self) -> set[str]:
        """Parameters that take no weight decay, besides norms and biases."""
        return set()

    @staticmethod
    def convert(state: dict[str, Tensor], net: Backbone) -> dict[str, Tensor]:
        """Official checkpoint names and tables -> those of ``net``."""
        return state

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        """Constructor arguments that make the network the one which parity cases of
        this variant name and this image size (H, W) tapped."""
        return dict(arch=variant)
