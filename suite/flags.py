"""What train.py's flags change in a config: all of it, so that a dumped config repeats the run."""
from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from backbones.base import Backbone
from backbones.errors import UserError


def apply(cfg: Config, *, amp: bool = False, layer_decay: float | None = None,
          ema: float | None = None, accumulate: int = 1, compile: bool = False,
          fsdp: bool = False, pretrained: str | None = None,
          pretraining: str | None = None) -> Config:
    """Change a config as flags say; they win over what it says itself.

    Args:
        cfg: from ``config.load``; changed in place.
        amp: mixed precision: bfloat16 where the device has it, else float16.
        layer_decay: factor of the learning rate from one layer of the backbone to the one
            below, in (0, 1]; takes the place of rates by stage.
        ema: evaluate an exponential moving average of the weights; share of the newest
            ones in it, in (0, 1).
        accumulate: batches per optimizer step.
        compile: run the backbone through ``torch.compile``.
        fsdp: shard parameters, gradients and optimizer over the processes.
        pretrained: checkpoint file of the backbone.
        pretraining: what those weights learned from, e.g. 'ImageNet-1K', for the record.

    Returns:
        cfg

    Raises:
        UserError: a value is out of its range, or two flags exclude each other.
    """
    if amp:
        _use_amp(cfg)
    if layer_decay is not None:
        _use_layer_decay(cfg, layer_decay)
    if ema is not None:
        _between(ema, '--ema', below=True)
        _use_hook(cfg, 'AverageWeights', momentum=ema)
    if accumulate < 1:
        raise UserError(f'--accumulate {accumulate}: one batch or more make a step')
    if accumulate > 1:
        cfg.optim_wrapper.accumulative_counts = accumulate
    if compile:
        _use_hook(cfg, 'CompileBackbone')
    if fsdp:
        cfg.fsdp = True
    _check_shards(cfg)
    if pretrained is not None:
        path = Path(pretrained).expanduser().resolve()
        if not path.is_file():
            raise UserError(f'--pretrained: there is no file {path}')
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    if pretraining is not None:
        if not (cfg.model.backbone.get('init_cfg') or cfg.get('load_from')):
            raise UserError(f'--pretraining {pretraining}: no weights are loaded; name their file '
                            'with --pretrained')
        cfg.pretraining = pretraining
    return cfg


def precision(cfg: Config) -> str:
    """What a config computes in, as records say it."""
    if cfg.optim_wrapper.type == 'GuardedFloat16OptimWrapper':
        return 'float16 autocast'
    return 'bfloat16 autocast' if cfg.optim_wrapper.get('bfloat16') else 'float32'


def accumulated(cfg: Config) -> int:
    """Batches per optimizer step."""
    return cfg.optim_wrapper.get('accumulative_counts', 1)


def averaged(cfg: Config) -> bool:
    """Whether evaluations and checkpoints are of averaged weights."""
    return _hook(cfg, 'AverageWeights') is not None


def describe(cfg: Config) -> str:
    """What is out of the ordinary in how a config trains, in words; may be empty."""
    paramwise = cfg.optim_wrapper.get('paramwise_cfg') or {}
    decay = paramwise.get('layer_decay', 1)
    words = [f'layer decay {decay:g}'] * (decay != 1)
    words += ['learning rates by stage'] * bool(paramwise.get('stage_rates'))
    if average := _hook(cfg, 'AverageWeights'):
        words.append(f'averaged weights (momentum {average.momentum:g})')
    words += [f'{accumulated(cfg)} batches a step'] * (accumulated(cfg) > 1)
    words += ['compiled backbone'] * (_hook(cfg, 'CompileBackbone') is not None)
    words += ['sharded'] * cfg.get('fsdp', False)
    return ', '.join(words)


def _use_amp(cfg: Config) -> None:
    if not torch.cuda.is_available() or torch.cuda.is_bf16_supported():
        cfg.optim_wrapper.bfloat16 = True
    else:
        cfg.optim_wrapper.type = 'GuardedFloat16OptimWrapper'
        cfg.optim_wrapper.loss_scale = 'dynamic'


def _check_shards(cfg: Config) -> None:
    if cfg.get('fsdp'):
        if averaged(cfg):
            raise UserError('--fsdp and --ema exclude each other: no average of sharded weights is '
                            'kept; leave one of them out')
        if _hook(cfg, 'CompileBackbone'):
            raise UserError('--fsdp and --compile exclude each other: a compiled backbone passes '
                            'over the hooks that bring shards together; leave one of them out')


def _use_layer_decay(cfg: Config, rate: float) -> None:
    _between(rate, '--layer-decay')
    if cfg.optim_wrapper.get('constructor') != 'LayerDecay':
        raise UserError("--layer-decay: the config's optim_wrapper.constructor is "
                        f'{cfg.optim_wrapper.get("constructor")}; it works with LayerDecay')
    kind = cfg.model.backbone.type
    if not issubclass(MODELS.get(kind), Backbone):
        raise UserError(f'--layer-decay: {kind} does not say how deep its parameters lie; see '
                        'backbones.base.Backbone.layer_id')
    cfg.optim_wrapper.setdefault('paramwise_cfg', {}).update(layer_decay=rate, stage_rates=None)


def _between(value: float, flag: str, below: bool = False) -> None:
    if not 0 < value <= 1 or (below and value == 1):
        raise UserError(f'{flag} {value:g}: must be greater than 0 and '
                        f'{"below" if below else "at most"} 1')


def _hook(cfg: Config, kind: str) -> dict | None:
    return next((hook for hook in cfg.get('custom_hooks') or [] if hook.type == kind), None)


def _use_hook(cfg: Config, kind: str, **settings) -> None:
    if hook := _hook(cfg, kind):
        hook.update(settings)
    else:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type=kind, **settings)]
