"""What happens around a run: checkpoints that survive, randomness that repeats, and a
loss that is noticed when it is lost."""
from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import broadcast, broadcast_object_list, get_rank, master_only
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import FUNCTIONS, HOOKS
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from backbones.checkpoint import load_report, log
from backbones.errors import UserError

from .sharding import gather, is_sharded, scatter_checkpoint


def bare(model: nn.Module) -> nn.Module:
    """The network itself, without wrappers for many processes or many views."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def by_epoch(runner: Runner) -> bool:
    """Whether a run counts epochs, or iterations only."""
    return runner.train_loop.__class__.__name__.startswith('Epoch')


def position(runner: Runner) -> str:
    """Where a run stands, in words."""
    if by_epoch(runner):
        return f'epoch {runner.epoch + 1}, iteration {runner.iter + 1}'
    return f'iteration {runner.iter + 1}'


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary path for the new content of ``path``, which it replaces when whole."""
    temporary = path.with_suffix('.part')
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _saving(path: Path) -> Iterator[Path]:
    try:
        yield path
    except OSError as error:
        why = 'the disk is full' if error.errno == errno.ENOSPC else error.strerror
        raise UserError(f'could not save {path} ({why}); earlier checkpoints are intact; '
                        'make room and continue with --resume') from error


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is never seen half written, nor lost on a full disk."""
    with _replacing(path) as temporary:
        temporary.write_text(text)


@HOOKS.register_module()
class Checkpoint(Hook):
    """Saves ``epoch_N.pth`` or ``iter_N.pth``, the ``keep`` newest, and ``best.pth``.

    A file is written under a temporary name, then renamed, and older ones go only after
    that: a full disk or a kill never costs a checkpoint that was there. The first process
    writes; where the model is sharded, all bring their shards together before it does.

    Args:
        interval: epochs (iterations in iteration-based training) between two saves.
        keep: number of checkpoints kept, besides the best.
        best: metric by which ``best.pth`` is chosen; larger is better. None: the last one
            counts, as where validation is on test images.
    """

    priority = 'VERY_LOW'

    def __init__(self, interval: int, keep: int, best: str | None):
        self.interval = interval
        self.keep = keep
        self.best = best
        self._whole: dict = {}

    def after_train_epoch(self, runner: Runner) -> None:
        if by_epoch(runner):
            last = self.is_last_train_epoch(runner)
            if last or self.every_n_epochs(runner, self.interval):
                self._save(runner, f'epoch_{runner.epoch + 1}.pth',
                           dict(epoch=runner.epoch + 1, iter=runner.iter))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None,
                         outputs=None) -> None:
        if not by_epoch(runner):
            last = self.is_last_train_iter(runner)
            if last or self.every_n_train_iters(runner, self.interval):
                self._save(runner, f'iter_{runner.iter + 1}.pth',
                           dict(epoch=0, iter=runner.iter + 1))

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        value = (metrics or {}).get(self.best)
        if value is None or not np.isfinite(value):
            return
        note = Path(runner.work_dir, 'best.json')
        # Only the first process need see the work dir, and all must act alike.
        best = [not (note.exists() and json.loads(note.read_text())['value'] >= value)]
        broadcast_object_list(best)
        if best[0]:
            self._gather(runner)
            self._save_best(runner, note, float(value))

    @master_only
    def _save_best(self, runner: Runner, note: Path, value: float) -> None:
        meta = dict(epoch=runner.epoch, iter=runner.iter)
        with _saving(note.with_suffix('.pth')) as path:
            self._write(runner, path, dict(meta), save_optimizer=False,
                        save_param_scheduler=False)
            write_text(note, json.dumps(dict(metric=self.best, value=value, **meta)) + '\n')

    def _save(self, runner: Runner, name: str, meta: dict) -> None:
        self._gather(runner, runner.optim_wrapper)
        self._save_last(runner, name, meta)

    def _gather(self, runner: Runner, optim_wrapper: OptimWrapper | None = None) -> None:
        if is_sharded(runner.model):
            self._whole = dict(state_dict=gather(runner.model.state_dict()))
            if optim_wrapper:
                self._whole['optimizer'] = gather(optim_wrapper.state_dict())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint.update(self._whole)
        self._whole = {}

    @master_only
    def _save_last(self, runner: Runner, name: str, meta: dict) -> None:
        weights = self._whole.get('state_dict') or bare(runner.model).state_dict()
        for parameter, value in weights.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise UserError(f'{parameter} is no longer finite at {position(runner)}; '
                                'nothing was saved over the last good checkpoint; lower the '
                                'learning rate or train without --amp')
        with _saving(Path(runner.work_dir, name)) as path:
            self._write(runner, path, meta)
            write_text(path.with_name('last_checkpoint'), str(path))
        kind = name.partition('_')[0]
        kept = sorted(Path(runner.work_dir).glob(f'{kind}_*.pth'),
                      key=lambda path: path.stat().st_mtime)
        for outdated in kept[:-self.keep]:
            outdated.unlink()

    @staticmethod
    def _write(runner: Runner, path: Path, meta: dict, **what: bool) -> None:
        with _replacing(path) as temporary:
            runner.save_checkpoint(runner.work_dir, temporary.name, meta=meta, **what)


@HOOKS.register_module()
class CheckpointReport(Hook):
    """Says how much of a loaded checkpoint fitted; refuses one of another network. To be
    measured or resumed it must hold everything, to start from, 95 %."""

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if is_sharded(runner.model):
            scatter_checkpoint(checkpoint, runner.model, runner.optim_wrapper.optimizer)
        weights = checkpoint.get('state_dict', checkpoint)
        state = {name.removeprefix('module.'): value for name, value in weights.items()
                 if isinstance(value, Tensor)}
        source = runner._load_from or 'the checkpoint'
        whole = runner._resume or not isinstance(runner._train_loop, BaseLoop)
        log.info(load_report(bare(runner.model), state, str(source), whole))


@HOOKS.register_module()
class ShareStatistics(Hook):
    """Gives every process the running statistics of the first one, which checkpoints hold,
    before they measure together: what is measured is what was saved."""

    def before_val_epoch(self, runner: Runner) -> None:
        for buffer in bare(runner.model).buffers():
            broadcast(buffer)


class CatchUp(Hook):
    """Evaluates a resumed checkpoint first, where one was due: the kill may have come
    between the two."""

    priority = 'VERY_LOW'

    def before_train(self, runner: Runner) -> None:
        loop = runner.train_loop
        done, end = ((loop.epoch, loop.max_epochs) if by_epoch(runner)
                     else (loop.iter, loop.max_iters))
        if runner.val_loop and done >= loop.val_begin and (
                done % loop.val_interval == 0 or done == end):
            runner.val_loop.run()


@HOOKS.register_module()
class Reseed(Hook):
    """Starts the random numbers of every epoch (iteration-based training: of every
    checkpoint interval) from the seed and the position, so that a resumed run draws what
    an uninterrupted one would have drawn."""

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Runner) -> None:
        self._seed(runner, runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None,
                         outputs=None) -> None:
        if self._starts(runner, runner.iter + 1):
            loop = runner.train_loop
            if hasattr(loop.dataloader.sampler, 'skip'):
                # Batches that workers loaded ahead drew from the old numbers.
                loop.dataloader_iterator.skip_iter(runner.iter + 1)
            self._seed(runner, runner.iter + 1)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        if self._starts(runner, runner.iter):
            self._seed(runner, runner.iter)

    @staticmethod
    def _starts(runner: Runner, iteration: int) -> bool:
        interval = runner.cfg.get('default_hooks', {}).get('checkpoint', {}).get('interval')
        return bool(interval) and not by_epoch(runner) and iteration % interval == 0

    @staticmethod
    def _seed(runner: Runner, iteration: int) -> None:
        seed = np.random.SeedSequence([runner.seed, iteration, get_rank()]).generate_state(1)[0]
        random.seed(int(seed))
        np.random.seed(seed)
        torch.manual_seed(int(seed))


@FUNCTIONS.register_module()
def seed_worker(worker_id: int) -> None:
    """Seed a data-loading worker from torch's per-epoch base seed, which ``Reseed`` makes
    repeatable; a fixed seed would repeat the same augmentations in every epoch."""
    seed = torch.initial_seed() % 2 ** 32
    random.seed(seed)
    np.random.seed(seed)


def _tensors(value) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _broken(value) -> bool:
    return any(t.is_floating_point() and not torch.isfinite(t).all() for t in _tensors(value))


@HOOKS.register_module()
class NonFiniteGuard(Hook):
    """Tells where a lost loss came from: repeats the forward pass of that batch and names
    the first module that turned finite inputs into something else, or the loss."""

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        runner.optim_wrapper.diagnose = lambda: self._diagnose(runner, data_batch)

    def _diagnose(self, runner: Runner, data_batch: dict) -> str:
        last = Path(runner.work_dir, 'last_checkpoint')
        saved = f'last good checkpoint: {last.read_text()}' if last.exists() else 'none saved yet'
        return (f' at {position(runner)}; first in {self._culprit(runner, data_batch)}; {saved}; '
                'lower the learning rate, clip gradients or train without --amp')

    @staticmethod
    @torch.no_grad()
    def _culprit(runner: Runner, data_batch: dict) -> str:
        model = bare(runner.model)
        for name, parameter in model.named_parameters():
            if _broken(parameter):
                return f'parameter {name}'
        found: list[str] = []

        def look(name: str):
            def hook(module: nn.Module, inputs: tuple, output) -> None:
                if not found and _broken(output):
                    found.append(f'module {name}' + ' (inputs too)' * _broken(inputs))
            return hook

        handles = [module.register_forward_hook(look(name))
                   for name, module in model.named_modules() if name]
        try:
            with runner.optim_wrapper.optim_context(runner.model):
                losses = model(**model.data_preprocessor(data_batch, True), mode='loss')
        finally:
            for handle in handles:
                handle.remove()
        bad = [name for name, value in losses.items() if _broken(value)]
        return (found or [f'loss {name}' for name in bad] or
                ['nothing that a second pass over the batch repeats'])[0]
