"""One way to build an optimizer for every backbone, and one that notices a lost run."""
from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import torch
from mmengine.dist import all_gather_object, all_reduce
from mmengine.model import is_model_wrapper
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backbones.base import Backbone
from backbones.errors import UserError

_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


class NonFiniteLoss(UserError):
    """The loss is NaN or infinite; no weight was changed by it."""


class _Guard:
    """Refuses to step on a loss that is no number. ``diagnose`` may be replaced by
    something that knows where the loss came from."""

    diagnose: Callable[[], str] = staticmethod(lambda: '')

    def update_params(self, loss: Tensor, *args, **kwargs) -> None:
        lost = (~torch.isfinite(loss)).any().float()
        # All processes stop together: the pass that looks for the cause may need them all.
        all_reduce(lost, 'max')
        if lost:
            told = f'the loss became {loss.item()}{self.diagnose()}'
            own = not torch.isfinite(loss).all()
            raise NonFiniteLoss(next(filter(None, all_gather_object(told if own else None))))
        super().update_params(loss, *args, **kwargs)


@OPTIM_WRAPPERS.register_module()
class GuardedOptimWrapper(_Guard, OptimWrapper):
    """Optimizer steps in float32, or under bfloat16 autocast, which needs no loss scaling.

    Args:
        bfloat16: autocast the forward pass.
        kwargs: of mmengine's ``OptimWrapper``.
    """

    def __init__(self, bfloat16: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.bfloat16 = bfloat16

    @contextmanager
    def optim_context(self, model: nn.Module):
        device = next(model.parameters()).device.type
        with (super().optim_context(model),
              torch.autocast(device, torch.bfloat16, enabled=self.bfloat16)):
            yield


@OPTIM_WRAPPERS.register_module()
class GuardedFloat16OptimWrapper(_Guard, AmpOptimWrapper):
    """float16 autocast with dynamic loss scaling, for GPUs without bfloat16."""


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecay:
    """Parameter groups by depth and kind, for every backbone that keeps the contract.

    A backbone parameter of layer i learns at ``layer_decay ** (num_layers + 1 - i)`` times
    the learning rate (arXiv 2106.08254, section 3.2); neck and heads at the full rate.

    Args:
        optim_wrapper_cfg: with an ``optimizer`` whose ``lr`` and ``weight_decay`` count for
            parameters of the last layer.
        paramwise_cfg: layer_decay (default 1.0, off); stage_rates (default none): instead of
            it, factors of the learning rate of the stem and all downsampling, then of each
            stage, as in ConvNeXt's segmentation runs; bias_decay (True): weight decay for
            biases; norm_decay (False): for gains and offsets of norms and for the names in
            the backbone's ``no_weight_decay()``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None):
        self.wrapper = dict(optim_wrapper_cfg)
        self.optimizer = dict(self.wrapper.pop('optimizer'))
        options = dict(paramwise_cfg or {})
        self.layer_decay = options.pop('layer_decay', 1.0)
        self.stage_rates = options.pop('stage_rates', None)
        self.bias_decay = options.pop('bias_decay', True)
        self.norm_decay = options.pop('norm_decay', False)
        if options:
            raise UserError(f'LayerDecay has no paramwise setting {", ".join(options)}; it has '
                            'layer_decay, stage_rates, bias_decay, norm_decay')
        if self.stage_rates and self.layer_decay != 1:
            raise UserError('LayerDecay: layer_decay and stage_rates exclude each other')

    def __call__(self, model: nn.Module) -> OptimWrapper:
        model = model.module if is_model_wrapper(model) else model
        groups: dict[tuple[float, float], dict] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                key = self._rate(model, name), self._decay(model, name)
                group = groups.setdefault(key, dict(params=[], lr=key[0], weight_decay=key[1]))
                group['params'].append(parameter)
        optimizer = OPTIMIZERS.build({**self.optimizer, 'params': list(groups.values())})
        return OPTIM_WRAPPERS.build({'type': 'OptimWrapper', **self.wrapper,
                                     'optimizer': optimizer})

    def _rate(self, model: nn.Module, name: str) -> float:
        backbone, _, inside = name.partition('backbone.')
        net = getattr(model, 'backbone', None)
        if backbone or not isinstance(net, Backbone):
            return self.optimizer['lr']
        if self.stage_rates:
            stage = 0 if 'downsample' in inside else net.stage_id(inside)
            return self.optimizer['lr'] * [*self.stage_rates, 1.][min(stage, len(self.stage_rates))]
        depth = net.num_layers + 1 - net.layer_id(inside)
        return self.optimizer['lr'] * self.layer_decay ** depth

    def _decay(self, model: nn.Module, name: str) -> float:
        owner = model.get_submodule(name.rpartition('.')[0])
        exempt = getattr(getattr(model, 'backbone', None), 'no_weight_decay', set)()
        spared = isinstance(owner, _NORMS) or name.removeprefix('backbone.') in exempt
        if spared:
            keeps = self.norm_decay
        else:
            keeps = self.bias_decay or not name.removesuffix('.original').endswith('bias')
        return self.optimizer.get('weight_decay', 0.) if keeps else 0.
