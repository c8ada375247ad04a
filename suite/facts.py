"""What a record says of a config: which network, on what, for how long, how large."""
from __future__ import annotations

import json
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import MODELS

from . import complexity
from .config import backbone_name, fingerprint


def facts(cfg: Config, batch: int) -> dict:
    """Everything that the config of a run tells, as ``suite.record`` keeps it.

    Args:
        cfg: complete, before anything in it was set for resuming or testing.
        batch: images per optimizer step.

    Returns:
        the config's hash, with and without the seed; family, name and pretraining of the
        backbone; protocol, schedule, seed and effective batch; parameters and, at the size that
        papers count at, MACs.
    """
    backbone = cfg.model.backbone
    size = complexity.reference_size(cfg)
    work = complexity.of_config(cfg, size)
    return dict(
        config_hash=fingerprint(cfg), settings_hash=fingerprint(cfg, seed=False),
        family=backbone.type.removeprefix('mmengine.'), backbone=backbone_name(backbone),
        reconstruction=getattr(MODELS.get(backbone.type), 'reconstruction', False),
        pretraining=pretraining(cfg), protocol=cfg.protocol, mini=cfg.mini,
        schedule=schedule(cfg, batch), effective_batch=batch, seed=cfg.randomness.seed,
        parameters=work.model.parameters, backbone_parameters=work.backbone.parameters,
        macs=dict(size=list(size), backbone=work.backbone.macs, model=work.model.macs))


def trained(checkpoint: Path) -> dict:
    """How a checkpoint was trained, by the record beside it; 'unknown' where there is none."""
    try:
        record = json.loads(checkpoint.with_name('record.json').read_text())
    except (OSError, ValueError):
        record = {}
    return dict(pretraining=record.get('pretraining', 'unknown'),
                schedule=record.get('schedule', 'unknown'),
                effective_batch=record.get('effective_batch'))


def pretraining(cfg: Config) -> str:
    """What the weights come from: the config's own word for it (``pretraining``), else the
    name of the file that they are loaded from, else 'none'."""
    backbone = cfg.model.backbone
    file = (backbone.get('init_cfg') or {}).get('checkpoint') or cfg.get('load_from')
    return cfg.get('pretraining') or (Path(file).name if file else 'none')


def schedule(cfg: Config, batch: int) -> str:
    """How long and on what is trained: runs whose words differ are not to be compared."""
    loop = cfg.train_cfg
    if budget := cfg.get('budget'):
        length = budget
    elif 'max_epochs' in loop:
        length = f'{loop.max_epochs} epochs'
    else:
        length = f'{loop.max_iters} iterations'
    share = cfg.get('subset') or 1
    return f'{length}, batch {batch}' + (f', {share:.3g} of the data' if share < 1 else '')
