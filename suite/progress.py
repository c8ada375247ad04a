"""Progress that a person can follow: a bar on a terminal, lines elsewhere."""
from __future__ import annotations

import sys
import time

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from tqdm import tqdm

from .hooks import by_epoch

NAMES = {'nuclei/dice': 'Dice', 'nuclei/aji': 'AJI', 'nuclei/pq': 'PQ',
         'coco/bbox_mAP': 'box mAP', 'coco/segm_mAP': 'mask mAP', 'coco/bbox_mAP_50': 'box AP50',
         'coco/segm_mAP_50': 'mask AP50', 'mIoU': 'mIoU', 'aAcc': 'pixel accuracy'}


def summary(metrics: dict) -> str:
    """The headline metrics of an evaluation, in [0, 1]: 'box mAP 0.712  mask mAP 0.733'."""
    shown = {name: metrics[key] for key, name in NAMES.items() if key in metrics}
    # mmseg reports percent, COCO fractions.
    percent = any(key in metrics for key in ('mIoU', 'aAcc'))
    return '  '.join(f'{name} {value / (100 if percent else 1):.3f}'
                     for name, value in shown.items()) or 'no metrics'


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


@HOOKS.register_module()
class Progress(Hook):
    """Epoch, iteration, loss, learning rate and time left while training; images while
    validating; the headline metrics after it."""

    priority = 'LOW'

    def __init__(self):
        self.bar: tqdm | None = None

    def before_train(self, runner: Runner) -> None:
        self.started, self.first = time.monotonic(), runner.iter
        self.by_epoch = by_epoch(runner)
        self.interval = runner.cfg.get('default_hooks', {}).get('logger', {}).get('interval', 50)
        self._open(None if self._guessed(runner) else runner.max_iters, runner.iter, 'training')

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None,
                         outputs: dict | None = None) -> None:
        done, total = runner.iter + 1, runner.max_iters
        lr = max(group['lr'] for group in runner.optim_wrapper.optimizer.param_groups)
        loss = outputs['loss'].item()
        pace = (time.monotonic() - self.started) / (done - self.first)
        where = f'iter {done}/{"~" * self._guessed(runner)}{total}'
        if self.by_epoch:
            batches = len(runner.train_dataloader)
            where = f'epoch {runner.epoch + 1}/{runner.max_epochs}  iter {batch_idx + 1}/{batches}'
        if self.bar is not None:
            self.bar.set_description(where, refresh=False)
            self.bar.set_postfix_str(f'loss {loss:.3f}  lr {lr:.1e}', refresh=False)
            self.bar.total = total
            self.bar.update()
        elif is_main_process() and (done % self.interval == 0 or done == total):
            print(f'{where}  loss {loss:.3f}  lr {lr:.1e}  {pace:.2f} s/iter  '
                  f'left {clock(pace * (total - done))}', flush=True)

    def after_train(self, runner: Runner) -> None:
        self._close()

    def before_val_epoch(self, runner: Runner) -> None:
        self._measure(len(runner.val_dataloader))

    def before_test_epoch(self, runner: Runner) -> None:
        self._measure(len(runner.test_dataloader))

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None,
                       outputs=None) -> None:
        if self.evaluation is not None:
            self.evaluation.update()

    after_test_iter = after_val_iter

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        if self.evaluation is not None:
            self.evaluation.close()
        if is_main_process():
            spent = time.monotonic() - self.evaluation_started
            where = ''
            if runner._train_loop is not None and not isinstance(runner._train_loop, dict):
                where = (f'after epoch {runner.epoch}: ' if self.by_epoch
                         else f'after iteration {runner.iter}: ')
            tqdm.write(f'{where}{summary(metrics or {})}  (measured in {clock(spent)})')
            sys.stdout.flush()
            # Time spent measuring must not count as time per iteration.
            if hasattr(self, 'started'):
                self.started += spent

    after_test_epoch = after_val_epoch

    @staticmethod
    def _guessed(runner: Runner) -> bool:
        """Whether nobody knows the last iteration yet, see ``suite.budget``."""
        return getattr(runner.train_loop, 'estimated', False)

    def _open(self, total: int | None, done: int, what: str) -> None:
        if is_main_process() and sys.stdout.isatty():
            self.bar = tqdm(total=total, initial=done, desc=what, dynamic_ncols=True,
                            file=sys.stdout)

    def _measure(self, total: int) -> None:
        self.evaluation_started = time.monotonic()
        self.evaluation = None
        if is_main_process() and sys.stdout.isatty():
            self.evaluation = tqdm(total=total, desc='measuring', leave=False,
                                   dynamic_ncols=True, file=sys.stdout)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
