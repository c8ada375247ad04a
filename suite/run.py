"""Training and testing: a config in, checkpoints, pictures and a record out."""
from __future__ import annotations

import functools
import logging
import os
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.dist import init_dist, is_main_process
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.registry import RUNNERS
from mmengine.runner import BaseLoop, Runner
from mmengine.runner.checkpoint import get_torch_safe_globals
from torch import nn
from yapf.yapflib import yapf_api

from backbones.checkpoint import log as loading
from backbones.checkpoint import read_checkpoint
from backbones.errors import UserError

from . import flags
from .cli import reason
from .config import ROOT, backbone_name
from .facts import facts, trained
from .hooks import CatchUp, position
from .progress import clock, summary
from .record import Record
from .sharding import is_sharded, shard


def _once(format_code):
    """mmengine makes the same config pretty six times in a run, at more than a second each."""
    remembered = functools.lru_cache(4)(
        lambda text, style: format_code(text, style_config=dict(style)))
    return lambda text, style_config: remembered(text, tuple(style_config.items()))


yapf_api.FormatCode = _once(yapf_api.FormatCode)


@RUNNERS.register_module()
class BenchRunner(Runner):
    """mmengine's Runner with a quiet console (its log file keeps everything) and
    distributed training without GPUs."""

    def build_logger(self, *args, **kwargs) -> logging.Logger:
        logger = super().build_logger(*args, **kwargs)
        # A log on a full disk must not bury the line that says so under tracebacks.
        logging.raiseExceptions = False
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.ERROR)
        loading.setLevel(logging.INFO)
        loading.handlers = [h for h in logger.handlers if isinstance(h, logging.FileHandler)]
        if is_main_process():
            loading.addHandler(logging.StreamHandler(sys.stdout))
        return logger

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        super().scale_lr(optim_wrapper, auto_scale_lr)
        if (auto_scale_lr or {}).get('enable'):
            # mmengine's own rule leaves accumulated steps out.
            for group in optim_wrapper.optimizer.param_groups:
                group['lr'] *= flags.accumulated(self.cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        if not self.distributed:
            return super().wrap_model(model_wrapper_cfg, model)
        if not torch.cuda.is_available():
            model = revert_sync_batchnorm(model)
        if self._shards:
            return model.to(get_device())
        if not torch.cuda.is_available():
            return MMDistributedDataParallel(module=model, broadcast_buffers=False)
        return super().wrap_model(model_wrapper_cfg, model)

    def build_optim_wrapper(self, optim_wrapper: dict | OptimWrapper) -> OptimWrapper:
        if self._shards and not is_sharded(self.model):
            # Before the optimizer takes up the parameters, after these have their values.
            super()._init_model_weights()
            shard(self.model)
        return super().build_optim_wrapper(optim_wrapper)

    def _init_model_weights(self) -> None:
        if not self._shards:
            super()._init_model_weights()

    @property
    def _shards(self) -> bool:
        return self.distributed and self.cfg.get('fsdp', False)


class Note(Hook):
    """Puts every evaluation into the run's record."""

    def __init__(self, record: Record):
        self.record = record

    def before_train(self, runner: Runner) -> None:
        self.record.rewind(runner.iter)

    def before_val_epoch(self, runner: Runner) -> None:
        # Median: the first steps warm up, and the one after an evaluation waits for it.
        seconds, _ = runner.message_hub.get_scalar('train/time').data
        batch = runner.cfg.train_dataloader.batch_size * runner.world_size
        self.record.trained(batch / float(np.median(seconds)))

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        self.record.measured(metrics or {}, epoch=runner.epoch, iteration=runner.iter)

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        self.record.measured(metrics or {})


def use_work_dir(path: str | Path, argument: str = '--work-dir') -> Path:
    """Make a folder for results, or say why they could not be written there.

    Args:
        argument: the one by which users choose the folder.
    """
    path = Path(path).expanduser().resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f'work dir {path} is not writable ({error.strerror}); choose another '
                        f'with {argument}') from error
    return path


def set_aside(work_dir: Path) -> None:
    """Move an earlier run's results out of a new run's way; nothing is deleted."""
    old = [path for pattern in ('*.pth', '*.json', 'last_checkpoint')
           for path in work_dir.glob(pattern)]
    if old:
        stamp = time.strftime('%Y%m%d_%H%M%S', time.localtime(
            max(path.stat().st_mtime for path in old)))
        aside = work_dir / 'earlier' / stamp
        aside.mkdir(parents=True, exist_ok=True)
        for path in old:
            shutil.move(path, aside / path.name)
        print(f'an earlier run was moved to {aside} (--resume continues one instead)')


def connect(cfg: Config, launcher: str) -> None:
    """Join the processes that a launcher started; NCCL on GPUs, Gloo without them."""
    if launcher == 'none' and 'TORCHELASTIC_RUN_ID' in os.environ:
        launcher = 'pytorch'
    cfg.launcher = launcher
    if launcher == 'pytorch' and not torch.cuda.is_available():
        torch.distributed.init_process_group('gloo')
    elif launcher != 'none':
        init_dist(launcher, **cfg.env_cfg.dist_cfg)


def effective_batch(cfg: Config) -> int:
    """Images per optimizer step, over all processes and accumulated steps."""
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    return cfg.train_dataloader.batch_size * world * flags.accumulated(cfg)


def scaling(cfg: Config) -> str:
    """Says how the learning rate follows the effective batch."""
    batch, lr = effective_batch(cfg), cfg.optim_wrapper.optimizer.lr
    rule = cfg.get('auto_scale_lr', {})
    if not rule.get('enable'):
        return f'effective batch {batch}, learning rate {lr:.2e} (not scaled)'
    base = rule.base_batch_size
    return (f'effective batch {batch}, learning rate {lr * batch / base:.2e}'
            + (f' ({lr:.2e} for {base}, scaled)' if batch != base else ''))


def build_runner(cfg: Config) -> BenchRunner:
    """The runner of a config; what a config names but nobody registered is one line."""
    try:
        return BenchRunner.from_cfg(cfg)
    except KeyError as error:
        if ' registry' not in (text := str(error.args[0])):
            raise
        raise UserError(f'config: {text.partition(". ")[0]}') from error


def default_work_dir(cfg: Config) -> Path:
    """work_dirs/BACKBONE/PROTOCOL, with '_mini' for trials."""
    name = backbone_name(cfg.model.backbone).replace('/', '_')
    return ROOT / 'work_dirs' / name / (cfg.protocol + '_mini' * cfg.mini)


def need_data(cfg: Config) -> None:
    """With ``--mini``, make the data that is not there yet."""
    if cfg.mini:
        from .mini import ensure_mini
        kind = Path(cfg.train_dataloader.dataset.data_root).relative_to(cfg.data_root).parts[0]
        ensure_mini(cfg.data_root, [kind])


def train(cfg: Config, work_dir: str | None = None, resume: str | None = None,
          tensorboard: bool = False, launcher: str = 'none') -> dict:
    """Train and evaluate as a config says.

    Args:
        cfg: from ``config.load``, see also ``flags.apply``.
        work_dir: default ``work_dirs/BACKBONE/PROTOCOL``.
        resume: 'auto' (the newest checkpoint in the work dir) or a checkpoint file.
        tensorboard: log for TensorBoard too.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'; torchrun is noticed by itself.

    Returns:
        The last evaluation's metrics.
    """
    connect(cfg, launcher)
    if cfg.get('fsdp') and not torch.distributed.is_initialized():
        raise UserError('--fsdp shards a model over several processes, and this is one; start '
                        'them with torchrun --nproc_per_node=N tools/train.py ...')
    known = facts(cfg, effective_batch(cfg))
    cfg.work_dir = str(use_work_dir(work_dir or default_work_dir(cfg)))
    if is_main_process():
        need_data(cfg)
        if not resume:
            set_aside(Path(cfg.work_dir))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    if resume:
        cfg.resume = True
        cfg.load_from = None if resume == 'auto' else resume
        _check_resume(cfg)
    elif cfg.get('load_from'):
        _check(cfg.load_from)
    if tensorboard:
        cfg.visualizer.vis_backends.append(ConfigDict(type='TensorboardVisBackend'))
    runner = build_runner(cfg)
    if resume:
        runner.register_hook(CatchUp())
    precision, ways = flags.precision(cfg), flags.describe(cfg)
    if is_main_process():
        print(f'{known["protocol"]} with {known["backbone"]}, '
              f'{known["parameters"] / 1e6:.1f} M parameters'
              f'{", mini" * cfg.mini}\n{scaling(cfg)}, {precision}, seed {known["seed"]}, '
              f'{runner.world_size} process{"es" * (runner.world_size > 1)}\n'
              + f'{ways}\n' * bool(ways) + f'results go to {cfg.work_dir}', flush=True)
    return _run(runner, runner.train, 'train', resumed=bool(resume), precision=precision, **known)


def test(cfg: Config, checkpoint: str, work_dir: str | None = None, tta: bool = False,
         launcher: str = 'none') -> dict:
    """Evaluate a checkpoint as a config says.

    Args:
        cfg: from ``config.load``.
        checkpoint: file of a training run.
        work_dir: default the folder ``test`` (``test_tta``) beside the checkpoint.
        tta: multi-scale and flipped views, merged.

    Returns:
        The metrics.
    """
    if tta and 'tta_pipeline' not in cfg:
        raise UserError(f'{cfg.protocol} has no views to merge; leave --tta out')
    connect(cfg, launcher)
    _check(checkpoint)
    beside = Path(checkpoint).with_name('test_tta' if tta else 'test')
    cfg.work_dir = str(use_work_dir(work_dir or beside))
    if Path(cfg.work_dir, 'last_checkpoint').exists():
        raise UserError(f'{cfg.work_dir} holds the record of a training run, which a test would '
                        'replace; choose another --work-dir')
    if is_main_process():
        need_data(cfg)
    known = facts(cfg, effective_batch(cfg)) | trained(Path(checkpoint))
    cfg.load_from = checkpoint
    if tta:
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    runner = build_runner(cfg)
    return _run(runner, runner.test, 'test', checkpoint=str(checkpoint), tta=tta,
                precision='float32', **known)


def _check(path: str) -> dict:
    """The contents of a checkpoint that mmengine is going to load, by safe means.

    What it cannot read safely it would load unsafely, and so run code from the file.
    """
    content = read_checkpoint(path)
    try:
        with torch.serialization.safe_globals(get_torch_safe_globals()):
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:
        foreign = ['the format before torch 1.6']
    if foreign:
        raise UserError(f'{path} cannot be loaded safely ({", ".join(foreign[:3])}); it is no '
                        'checkpoint of a training run here')
    return content


def _check_resume(cfg: Config) -> None:
    last = Path(cfg.work_dir, 'last_checkpoint')
    if cfg.load_from is None and not last.exists():
        raise UserError(f'nothing to resume in {cfg.work_dir}: no checkpoint was saved there yet; '
                        'leave --resume out to start')
    # By its name alone: the work dir may have moved.
    path = cfg.load_from = cfg.load_from or str(last.with_name(Path(last.read_text()).name))
    content = _check(path)
    if missing := {'meta', 'optimizer', 'message_hub'} - set(content):
        raise UserError(f'{path} cannot be resumed, it lacks {", ".join(sorted(missing))}; to '
                        f'start from its weights: --cfg-options load_from={path}')
    if ('ema_state_dict' in content) != flags.averaged(cfg):
        how = 'without' if flags.averaged(cfg) else 'with'
        raise UserError(f'{path} was trained {how} --ema, and can only be resumed {how} it')


def _run(runner: Runner, action, task: str, **known) -> dict:
    """Carry a run out and keep its record, however it ends."""
    if not is_main_process():
        action()
        return {}
    record = Record(runner.work_dir, task, world_size=runner.world_size, **known)
    runner.register_hook(Note(record))
    try:
        action()
    except KeyboardInterrupt:
        _close(record, 'interrupted')
        raise KeyboardInterrupt(_where_to_go_on(runner, task)) from None
    except Exception as error:
        if 'more than 1 value per channel' in str(error):
            error = UserError('BatchNorm cannot train on one value: UperNet needs two images or '
                              'more per process, see train_dataloader.batch_size')
        _close(record, 'failed', error=f'{type(error).__name__}: {reason(error)}')
        raise error
    record.close('completed')
    metrics = record.content['metrics']
    print(f'{summary(metrics)}  in {clock(record.content["wall_seconds"])}  '
          f'record: {record.path}')
    return metrics


def _close(record: Record, status: str, **facts) -> None:
    # On a full disk this must not take the place of what is said about it.
    with suppress(OSError):
        record.close(status, **facts)


def _where_to_go_on(runner: Runner, task: str) -> str:
    if task == 'test':
        return 'nothing was measured to the end'
    if not isinstance(runner._train_loop, BaseLoop):
        return 'before training started'
    last = Path(runner.work_dir, 'last_checkpoint')
    if not last.exists():
        return f'at {position(runner)}; no checkpoint was saved yet'
    return (f'at {position(runner)}; saved up to {last.read_text()}; the same command with '
            '--resume goes on from there')
