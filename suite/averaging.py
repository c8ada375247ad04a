"""Averaged weights, which measure better than those that are trained."""
from __future__ import annotations

from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner


@HOOKS.register_module()
class AverageWeights(EMAHook):
    """Averages the weights after every optimizer step, evaluates the average, and saves it.

    After step t (the first is 0, and copied) ``average += m * (weights - average)`` with
    ``m = max(momentum, 10 / (10 + t))``: the average of a short run is of its last tenth,
    and not of its random start. Buffers are averaged alike, so that BatchNorm's statistics
    are of the same weights.

    A checkpoint's ``state_dict`` is the average, for whoever tests it; what training goes
    on from is its ``ema_state_dict``.

    Args:
        momentum: share of the newest weights in the average, in the long run.
    """

    # Before ShareStatistics: the average's statistics are measured, and so to be shared.
    priority = 'ABOVE_NORMAL'

    def __init__(self, momentum: float):
        super().__init__('MomentumAnnealingEMA', momentum=momentum, gamma=10,
                         update_buffers=True)

    def before_run(self, runner: Runner) -> None:
        # A runner that only tests has no loop yet.
        self.training = isinstance(runner._train_loop, BaseLoop)
        if self.training:
            super().before_run(runner)

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        # Between the steps of accumulated gradients no weight changes.
        if runner.optim_wrapper.should_update():
            super().after_train_iter(runner, *args, **kwargs)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        # From loaded weights alone the average starts by itself.
        if self.training and runner._resume:
            super().after_load_checkpoint(runner, checkpoint)

    def before_test_epoch(self, runner: Runner) -> None:
        """Nothing: what was loaded is the average."""

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Nothing, see above."""
