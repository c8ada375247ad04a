"""The whole train step of a protocol, as something that can be timed."""
from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner, set_random_seed

from .config import load, scope
from .latency import Case, System
from .modes import Mode
from .run import need_data


def steps(systems: Sequence[System], modes: Sequence[Mode], protocol: str, device: str,
          mini: bool = False, data_root: str | None = None) -> Iterator[Case]:
    """A case for every system in every mode, all on the same batch.

    Args:
        protocol: config file or name, see ``config.find``.
        device: 'cpu' or 'cuda'.
        mini, data_root: see ``config.load``.
    """
    # It would tell of every parameter how it was initialised.
    MMLogger.get_current_instance().setLevel('WARNING')
    batch = None
    for system in systems:
        cfg = load(protocol, backbone=system.name, data_root=data_root, mini=mini, options={
            f'model.backbone.{key}': value for key, value in system.options.items()})
        if batch is None:
            need_data(cfg)
            batch = first_batch(cfg)
        for mode in modes:
            yield step(system, cfg, batch, mode, device)


def first_batch(cfg: Config) -> dict:
    """The batch that training with a config's seed would start with, on the CPU."""
    loader = copy.deepcopy(cfg.train_dataloader)
    loader.update(num_workers=0, persistent_workers=False)
    set_random_seed(cfg.randomness.seed)
    with scope(cfg):
        return next(iter(Runner.build_dataloader(loader, seed=cfg.randomness.seed)))


def step(system: System, cfg: Config, batch: dict, mode: Mode, device: str) -> Case:
    """One optimizer step on a loaded batch: preprocessing (with the copy to the device),
    forward, losses, backward and update, repeated where a config accumulates gradients. A
    mode's layout and compilation are the backbone's, its precision the whole model's.
    """
    wrapper_cfg = copy.deepcopy(cfg.optim_wrapper)
    if mode.bfloat16:
        wrapper_cfg.bfloat16 = True
    torch.manual_seed(cfg.randomness.seed)
    with scope(cfg):
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
        model.init_weights()
        model.to(device).train()
        wrapper = build_optim_wrapper(model, wrapper_cfg)
    mode.prepare(model.backbone)
    for group in wrapper.optimizer.param_groups:
        # As in the first steps of a warm-up: at the full rate, one batch over and over
        # might diverge.
        group['lr'] *= 1e-3
    passes = wrapper_cfg.get('accumulative_counts', 1)

    def call() -> None:
        for _ in range(passes):
            model.train_step(batch, wrapper)

    shape = tuple(model.data_preprocessor(batch, True)['inputs'].shape)
    return Case(system, mode, shape, call, repeated=passes, protocol=cfg.protocol, mini=cfg.mini)
