"""Any timm model inside the contract: ``TimmBackbone(name='convnext_tiny')``.

timm (https://github.com/huggingface/pytorch-image-models, Apache-2.0) builds the network,
and its ``forward_intermediates`` gives the maps. Added here is what a dense task needs:

- any image size. A trial on the meta device, which computes shapes only, finds out at
  construction whether a model takes every size, multiples of some number (then images are
  zero-padded on the right and bottom, and maps cropped to ceil(size / stride)), or one
  size only (then any other is an error);
- only what takes part: the same trial finds the parameters that the wanted maps depend on;
- a ``Pyramid`` for models whose maps all have one stride (ViT, DeiT, EVA, XCiT, ...).

Weights come through ``init_cfg`` only, in timm's naming; nothing is downloaded.
"""
from __future__ import annotations

import difflib
import inspect
import math
import sys
from collections.abc import Iterable, Sequence

import timm
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from torch import Tensor, nn

from .base import Backbone
from .errors import UserError, closest
from .layers import Pyramid
from .registry import register

_STRIDES = (4, 8, 16, 32)
# Without and with what ends a model's insistence on the size that it was pretrained at.
_ANY_SIZE = ({}, {'dynamic_img_size': True})
_ODD_SIZES = ((97, 131), (33, 65))


def _build(name: str, options: dict, taps: Sequence[int] | None = None) -> nn.Module:
    """A timm model without weights and classifier, and without what follows its last tap."""
    body = timm.create_model(name, pretrained=False, num_classes=0, **options)
    if taps is not None:
        body.prune_intermediate_layers(list(taps), prune_norm=True)
    return body


def _on_meta(name: str, options: dict, taps: Sequence[int] | None = None) -> nn.Module:
    """The same with shapes only, in eval mode."""
    with torch.device('meta'):
        return _build(name, options, taps).eval()


def _look_up(name: str, options: dict) -> nn.Module:
    """The whole model on the meta device; a name or setting that timm lacks is an error."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.5)
        raise UserError(f'timm has no model {name!r}; closest: {", ".join(near) or "none"}; '
                        'timm.list_models() lists all')
    try:
        return _on_meta(name, options)
    except Exception as error:
        if options and isinstance(error, TypeError):
            known = set(inspect.signature(type(_on_meta(name, {})).__init__).parameters)
            for key in sorted(options.keys() - known):
                raise UserError(f'timm model {name!r} has no setting {key!r}'
                                f'{closest(key, known - {"self"})}') from error
        raise UserError(f'timm cannot build {name!r} with {options}: {_reason(error)}') from error


def _strides(body: nn.Module) -> list[int]:
    return [info['reduction'] for info in body.feature_info]


def _columnar(body: nn.Module) -> bool:
    """Whether all maps have one stride, and a pyramid is made of them."""
    return len(set(_strides(body))) == 1


def _stage_taps(body: nn.Module) -> list[int]:
    """The numbers, in timm's ``feature_info``, of the maps by which stages end: the last
    one of each stride, or, without strides, what ends each quarter of the blocks."""
    strides = _strides(body)
    if _columnar(body):
        return [-(-len(strides) * quarter // 4) - 1 for quarter in (1, 2, 3, 4)]
    last = {stride: tap for tap, stride in enumerate(strides)}
    return [last[stride] for stride in _STRIDES if stride in last] or list(last.values())


def _maps(body: nn.Module, x: Tensor, taps: Iterable[int]) -> dict[int, Tensor]:
    """B x C x H x W maps by their number."""
    taps = sorted(set(taps))
    maps = body.forward_intermediates(x, indices=taps, norm=False, output_fmt='NCHW',
                                      intermediates_only=True)
    return dict(zip(taps, maps, strict=True))


def _reached(x: Tensor) -> set[int]:
    """Ids of the parameters that a map depends on, read off its autograd graph."""
    seen, queue, found = set(), [x.grad_fn], set()
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, 'variable'):
            found.add(id(node.variable))
        queue += [parent for parent, _ in node.next_functions]
    return found


def _keep_only(body: nn.Module, names: set[str]) -> None:
    """Take every other parameter away, with its module where that holds nothing else."""
    for name, module in list(body.named_modules()):
        inside = {f'{name}.{leaf}' for leaf, _ in module.named_parameters()}
        if name and inside and inside.isdisjoint(names):
            parent, _, leaf = name.rpartition('.')
            setattr(body.get_submodule(parent), leaf, nn.Identity())
    for name in [name for name, _ in body.named_parameters() if name not in names]:
        parent, _, leaf = name.rpartition('.')
        body.get_submodule(parent).register_parameter(leaf, None)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _up(size: Sequence[int], multiple: int) -> tuple[int, ...]:
    """Both sides, rounded up."""
    return tuple(-(-side // multiple) * multiple for side in size)


class _Trial:
    """What shapes alone tell about a model, from a few runs on the meta device.

    Attributes:
        options: of timm, under which the model takes the most sizes.
        multiple: of which both sides of an image must be.
        size: the only H x W that it takes, or None.
        rule: how the sizes of its maps round: 'ceil', 'floor', or 'either'.
        reached: per tap, the names of the parameters that the map depends on.
        called: names of the parameters of modules that run, be it for nothing.
    """

    def __init__(self, name: str, overrides: dict, taps: Sequence[int]):
        self.taps = taps
        self.size = None
        failure = None
        for extra in _ANY_SIZE:
            self.options = {**extra, **overrides}
            try:
                body = _on_meta(name, self.options, taps)
            except TypeError:
                continue  # the model has no such setting
            for self.multiple in sorted({1, *_strides(body), 2 * _strides(body)[-1]}):
                try:
                    self._run(body, [_up(size, self.multiple) for size in _ODD_SIZES])
                except Exception as error:  # whatever a model raises at a size it refuses
                    failure = failure or error
                else:
                    if self.multiple == 1 or self.rule == 'ceil':  # cropping can only shrink
                        return
        self.options, self.multiple = overrides, 1
        body = _on_meta(name, overrides, taps)
        size = overrides.get('img_size', body.pretrained_cfg['input_size'][-2:])
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        try:
            self._run(body, [self.size])
        except Exception as error:
            raise UserError(f'timm model {name!r} cannot be a backbone ({_reason(error)}); '
                            'choose another one') from failure

    def _run(self, body: nn.Module, sizes: Iterable[Sequence[int]]) -> None:
        """Set ``rule`` and ``reached``, or raise what speaks against these image sizes."""
        names = {id(parameter): name for name, parameter in body.named_parameters()}
        called = set()
        for module in body.modules():
            module.register_forward_pre_hook(lambda module, _: called.add(module))
        sides = []
        for size in sizes:
            with torch.device('meta'), torch.enable_grad():
                maps = _maps(body, torch.zeros(1, 3, *size), self.taps)
            for tap, x in maps.items():
                info = body.feature_info[tap]
                if x.ndim != 4 or x.shape[1] != info['num_chs']:
                    raise ValueError(f'map {tap} has shape {tuple(x.shape)}, announced are '
                                     f'{info["num_chs"]} channels')
                sides += [(side / info['reduction'], got) for side, got in zip(size, x.shape[-2:])]
        rules = dict(ceil=(math.ceil,), floor=(math.floor,), either=(math.floor, math.ceil))
        for self.rule, rounds in rules.items():
            if all(got in [to_int(exact) for to_int in rounds] for exact, got in sides):
                break
        else:
            raise ValueError('its maps do not cover the image in their strides')
        self.called = {names[id(parameter)] for module in called
                       for parameter in module.parameters(recurse=False)}
        self.reached = {tap: {names[i] for i in _reached(x)} for tap, x in maps.items()}


class TimmBackbone(Backbone):
    """A timm model as a dense backbone.

    Args:
        name: of the timm model, with or without a weights tag: 'resnet18', 'resnet18.a1_in1k'.
        out_indices: numbers of maps in timm's ``feature_info``; default those at strides 4,
            8, 16 and 32 (the last ones of their stride). Where all maps have one stride:
            levels 0 to 3 of the pyramid made of the maps that end the quarters of the blocks.
        drop_path_rate: for models that have one; default none.
        frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``; a stage ends with a map
            of the default ``out_indices``.
        overrides: further settings of ``timm.create_model``, such as ``img_size`` where a
            model takes one size only, or ``patch_size=16`` where its maps fit no pyramid.

    Attributes:
        size: the only H x W that the model takes, or None.
        size_rule: how sizes of maps round: 'ceil', 'floor', or 'either' where it varies.

    Raises:
        UserError: no such model, setting or map; a model without usable maps; at a forward
            pass, a size that the model does not take.
    """

    added = ('pyramid.',)

    def __init__(self, name: str = 'resnet18', out_indices: Sequence[int] | None = None,
                 drop_path_rate: float = 0., frozen_stages: int = -1,
                 norm_eval: bool = False, with_cp: bool = False,
                 init_cfg: dict | None = None, **overrides):
        if drop_path_rate:
            overrides['drop_path_rate'] = drop_path_rate
        model = _look_up(name, overrides)
        ends, columnar = _stage_taps(model), _columnar(model)
        strides = _STRIDES if columnar else _strides(model)
        if out_indices is None:
            out_indices = range(len(strides)) if columnar else ends
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        self.name = name
        if not 0 <= self.out_indices[0] <= self.out_indices[-1] < len(strides):
            raise UserError(f'timm model {name!r} has maps 0 to {len(strides) - 1}, at strides '
                            f'{"/".join(map(str, strides))}; out_indices ask for '
                            f'{self.out_indices}')
        self.taps = [ends[i] for i in self.out_indices] if columnar else list(self.out_indices)
        ends = [tap for tap in ends if tap <= self.taps[-1]]
        trial = _Trial(name, overrides, sorted({*ends, *self.taps}))
        self.options, self.multiple = trial.options, trial.multiple
        self.size, self.size_rule = trial.size, trial.rule
        self.out_strides = tuple(strides[i] for i in self.out_indices)
        self.out_channels = tuple(model.feature_info[tap]['num_chs'] for tap in self.taps)

        self.body = _build(name, trial.options, trial.taps)
        used = set().union(*(trial.reached[tap] for tap in self.taps))
        _keep_only(self.body, used | trial.called)
        self.pyramid = self._pyramid(_strides(model)[0]) if columnar else None
        if with_cp:
            self._checkpoint()
        self._number([trial.reached[tap] for tap in ends], used)
        self.freeze()

    def _pyramid(self, stride: int) -> Pyramid:
        if stride not in _STRIDES:
            raise UserError(f'timm model {self.name!r} has maps of stride {stride}, from which no '
                            'pyramid of strides 4/8/16/32 can be made; pass patch_size=16 '
                            '(checkpoints are resampled) or choose another model')
        return Pyramid(self.out_channels[0], stride, self.out_indices)

    def _checkpoint(self) -> None:
        """timm's own checkpointing, which counts a batch twice in the running statistics of
        BatchNorms; gradients are equal."""
        try:
            self.body.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            raise UserError(f'timm model {self.name!r} has no activation checkpointing; leave '
                            'with_cp off') from error

    def _number(self, reached: Sequence[set[str]], used: set[str]) -> None:
        """Give every parameter its layer and stage.

        Layers are timm's groups, or the stages where timm names none. Stage -1, which is
        always frozen, has what some models run without need for the wanted maps (HRNet).

        Args:
            reached: the parameters that each stage's map depends on.
            used: those that a wanted map depends on.
        """
        names = [name for name, _ in self.body.named_parameters()]
        stages = {name: next((i for i, inside in enumerate(reached, 1) if name in inside),
                             len(reached) + 1) for name in names}
        if hasattr(self.body, 'group_matcher'):
            layers = group_parameters(self.body, self.body.group_matcher(), reverse=True)
        else:
            stem = names[0].partition('.')[0] + '.'
            layers = {name: 0 if name.startswith(stem) else stages[name] for name in names}
        self._layers = {f'body.{name}': layers[name] for name in names}
        # A module belongs to the last stage of what it holds, one without parameters to that
        # of the module around it.
        self._stages: dict[str, int] = {}
        for name in names:
            stage = -1 if name not in used else stages[name] if layers[name] else 0
            name = f'body.{name}'
            while name:
                self._stages[name] = max(stage, self._stages.get(name, -1))
                name = name.rpartition('.')[0]
        self.depths = tuple(len({layers[name] for name in names if layers[name]
                                 and stages[name] == stage})
                            for stage in range(1, self._stages['body'] + 1))

    @property
    def num_layers(self) -> int:
        """Number of timm's layer groups besides the stem."""
        return max(self._layers.values())

    def stage_id(self, name: str) -> int:
        name = name.rstrip('.')
        if not name.startswith('body'):
            return self._stages['body'] + 1
        while name not in self._stages:
            name = name.rpartition('.')[0]
        return self._stages[name]

    def layer_id(self, name: str) -> int:
        return self._layers.get(name, self.num_layers + 1)

    def no_weight_decay(self) -> set[str]:
        skipped = self.body.no_weight_decay() if hasattr(self.body, 'no_weight_decay') else ()
        return {f'body.{name}' for name in skipped} & self._layers.keys()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        size = tuple(x.shape[-2:])
        if self.size not in (None, size):
            raise UserError(f'timm model {self.name!r} takes images of {self.size[0]} x '
                            f'{self.size[1]} only, got {size[0]} x {size[1]}; pass img_size=(H, W) '
                            'if it has that setting, or choose a backbone that takes any size')
        height, width = _up(size, self.multiple)
        if (height, width) != size:
            x = F.pad(x, (0, width - size[1], 0, height - size[0]))
        maps = _maps(self.body, x, self.taps)
        maps = [maps[tap] for tap in self.taps]
        if self.pyramid is not None:
            maps = self.pyramid(maps)
        cropped = (y[..., :math.ceil(size[0] / stride), :math.ceil(size[1] / stride)]
                   for y, stride in zip(maps, self.out_strides))
        return tuple(y.contiguous() for y in cropped)

    @staticmethod
    def convert(state: dict[str, Tensor], net: TimmBackbone) -> dict[str, Tensor]:
        """timm's names and tables, and what timm itself converts to them, or our own."""
        if not net.state_dict().keys().isdisjoint(state):
            return state
        module = sys.modules[timm.models.model_entrypoint(net.name).__module__]
        if hasattr(module, 'checkpoint_filter_fn'):
            try:
                state = module.checkpoint_filter_fn(state, _on_meta(net.name, net.options))
            except Exception as error:  # whatever a filter stumbles over in foreign weights
                raise UserError(f'these weights are not those of timm model {net.name!r} '
                                f'({_reason(error)}); choose others') from error
        return {f'body.{name}': tensor for name, tensor in state.items()}

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        return dict(name=variant)


register(TimmBackbone, {})
