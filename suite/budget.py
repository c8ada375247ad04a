"""Training on a budget, to rank backbones when full schedules are out of reach: the same
images seen, or the same time, for each of them, on a seeded share of the data.

Along the *share of the budget used*, the learning rate rises in the first 5 % and then
falls along a cosine to zero, under every protocol and in both kinds of budget alike: what is
ranked is a short schedule, not the beginning of a long one. One evaluation, at the end.
"""
from __future__ import annotations

import math
import re
from time import monotonic

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import broadcast
from mmengine.registry import DATASETS, LOOPS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from backbones.errors import UserError
from histology.share import Shareable

from .flags import accumulated
from .run import effective_batch

WARMUP = 0.05
_SAVED = 200  # most iterations between two checkpoints
_UNITS = dict(image=1, kimage=1000, second=1, minute=60, hour=3600)
_FOREVER = 10 ** 9  # steps, while nothing is known


def apply(cfg: Config, budget: str | None = None, subset: float | None = None) -> None:
    """Turn a protocol's schedule into a budget's, and cut its training data, in the config
    itself. It keeps both as ``budget`` ('800 images', '10 minutes') and ``subset``.

    Args:
        cfg: from ``config.load``, after ``flags.apply``.
        budget: number and unit, as ``800images``, ``20kimages``, ``90seconds``,
            ``10minutes`` or ``2hours``. None leaves the schedule as it is. Images are
            rounded up to whole steps. Time is that of loading batches and of training
            steps (the first ones include what ``--compile`` takes); set-up, evaluation and
            saving do not count.
        subset: share of the training images, in (0, 1]; which, depends on nothing but
            their number.

    Raises:
        UserError: either makes no sense.
    """
    if subset is not None:
        _cut(cfg, subset)
    if budget is not None:
        _limit(cfg, budget)


def _cut(cfg: Config, subset: float) -> None:
    if not 0 < subset <= 1:
        raise UserError(f'--subset {subset:g} is no share of the data; give one above 0, up to 1')
    dataset = cfg.train_dataloader.dataset
    if not issubclass(DATASETS.get(dataset.type) or object, Shareable):
        raise UserError(f'--subset: {dataset.type} cannot be cut; it works with the data sets of '
                        'the protocols in configs/')
    cfg.subset = dataset.share = float(subset)
    dataset.least = cfg.train_dataloader.batch_size


def _limit(cfg: Config, budget: str) -> None:
    amount, unit = _parse(budget)
    if unit.endswith('image'):
        _steps(amount, cfg)
        cfg.budget = f'{amount} images'
        cfg.train_cfg = ConfigDict(type='ImageBudgetLoop', images=amount)
    else:
        cfg.budget = f'{amount} seconds' if amount % 60 else f'{amount // 60} minutes'
        cfg.train_cfg = ConfigDict(type='TimeBudgetLoop', seconds=amount)
    cfg.param_scheduler = []
    epochs = cfg.log_processor.get('by_epoch', True)
    hooks = cfg.default_hooks
    hooks.checkpoint.interval = _SAVED if epochs else min(hooks.checkpoint.interval, _SAVED)
    hooks.logger.log_metric_by_epoch = cfg.log_processor.by_epoch = False
    cfg.train_dataloader.sampler = ConfigDict(type='InfiniteSampler', shuffle=True)


def _parse(text: str) -> tuple[int, str]:
    """Images, or seconds, and the unit without its plural."""
    match = re.fullmatch(r'(\d+\.?\d*)(k?image|second|minute|hour)s?', text)
    if not match:
        raise UserError(f'--budget {text!r} is not a number of images or a time; write it like '
                        '800images, 20kimages, 90seconds, 10minutes or 2hours')
    number, unit = match.groups()
    amount = round(float(number) * _UNITS[unit], 6)
    if amount < 1 or amount % 1:
        raise UserError(f'--budget {text!r} is not a whole number of images or seconds, '
                        'from 1 on')
    return int(amount), unit


def _steps(images: int, cfg: Config) -> int:
    """Optimizer steps that see these images."""
    if images < (batch := effective_batch(cfg)):
        raise UserError(f'a budget of {images} images is less than one step of {batch}; raise '
                        '--budget or lower train_dataloader.batch_size')
    return math.ceil(images / batch)


def rate(share: float) -> float:
    """Factor of the learning rate when a share of the budget is used: from a thousandth up
    to 1 in the first 5 %, then along a cosine to 0."""
    if share < WARMUP:
        return 1e-3 + (1 - 1e-3) * share / WARMUP
    return (1 + math.cos(math.pi * (min(share, 1) - WARMUP) / (1 - WARMUP))) / 2


class BudgetLoop(IterBasedTrainLoop):
    """Iterations until a budget is used, then one evaluation. A whole number of optimizer
    steps is made, of as many iterations each as the optimizer wrapper accumulates."""

    estimated = False  # whether max_iters is a guess, so far

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, steps: int):
        self.accumulated = accumulated(runner.cfg)
        super().__init__(runner, dataloader, steps * self.accumulated, val_interval=_FOREVER)

    @property
    def share(self) -> float:
        """Of the budget, how much is used; from 0 on."""
        raise NotImplementedError

    def run(self) -> nn.Module:
        runner = self.runner
        runner.call_hook('before_train')
        # Before Reseed: a new iterator draws a random number.
        self.dataloader_iterator.skip_iter(self._iter)
        runner.call_hook('before_train_epoch')
        while self._iter < self._max_iters:
            runner.model.train()
            self._run_step()
            if self._iter == self._max_iters and runner.val_loop is not None:
                runner.val_loop.run()
        runner.call_hook('after_train_epoch')
        runner.call_hook('after_train')
        return runner.model

    def _run_step(self) -> None:
        runner, start = self.runner, monotonic()
        where = dict(batch_idx=self._iter, data_batch=next(self.dataloader_iterator))
        runner.call_hook('before_train_iter', **where)
        for group in runner.optim_wrapper.optimizer.param_groups:
            group['lr'] = rate(self.share) * group.setdefault('initial_lr', group['lr'])
        outputs = runner.model.train_step(where['data_batch'], optim_wrapper=runner.optim_wrapper)
        # Before the hooks: they ask whether this was the last iteration, and save.
        self._spend(monotonic() - start)
        runner.call_hook('after_train_iter', **where, outputs=outputs)
        self._iter += 1

    def _spend(self, seconds: float) -> None:
        """Take note of the time that an iteration took."""


@LOOPS.register_module()
class ImageBudgetLoop(BudgetLoop):
    """As many optimizer steps as it takes to see a number of images."""

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, images: int):
        super().__init__(runner, dataloader, _steps(images, runner.cfg))

    @property
    def share(self) -> float:
        return self._iter / self._max_iters


@LOOPS.register_module()
class TimeBudgetLoop(BudgetLoop):
    """Optimizer steps until a time is used up, by the clock of the first process. The time
    is kept with every checkpoint, so that a resumed run goes on with it.

    Until the end is there, ``max_iters`` is what the pace so far lets expect.
    """

    _KEY = 'budget_seconds'

    def __init__(self, runner: Runner, dataloader: DataLoader | dict, seconds: float):
        super().__init__(runner, dataloader, _FOREVER)
        self.seconds = seconds
        self.estimated = True

    @property
    def share(self) -> float:
        return self.runner.message_hub.get_info(self._KEY, 0.) / self.seconds

    def run(self) -> nn.Module:
        if self.share:
            self._expect(self._iter)
        return super().run()

    def _spend(self, seconds: float) -> None:
        used = torch.tensor(self.share * self.seconds + seconds, dtype=torch.float64)
        broadcast(used)
        self.runner.message_hub.update_info(self._KEY, used.item())
        self._expect(self._iter + 1)

    def _expect(self, done: int) -> None:
        self.estimated = self.share < 1 or done % self.accumulated > 0
        self._max_iters = max(done + 1, round(done / self.share)) if self.estimated else done
