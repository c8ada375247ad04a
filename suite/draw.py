"""Pictures of predictions: boxes and masks, colour maps, or contours of nuclei."""
from __future__ import annotations

from pathlib import Path

import mmcv
import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer

SCORE = 0.3


def draw(visualizer: Visualizer, image: np.ndarray, sample: BaseDataElement, path: Path,
         truth: bool, score: float = SCORE) -> None:
    """Draw one image's predictions into a file; with ``truth``, beside what is true.

    Args:
        visualizer: mmdet's, mmseg's or that of nuclei, with ``dataset_meta`` set.
        image: H x W x 3, RGB.
        sample: the image's data sample, at the image's own size.
        path: file to write.
        score: boxes and masks below it are left out; nuclei are those of the label map.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    boxes = 'pred_instances' in sample and 'pred_nuclei' not in sample
    threshold = dict(pred_score_thr=score) if boxes else {}
    visualizer.add_datasample(path.stem, image, sample.cpu(), draw_gt=truth, draw_pred=True,
                              show=False, out_file=str(path), **threshold)


@HOOKS.register_module()
class DrawPredictions(Hook):
    """Draws the first images of every validation, prediction beside truth, into
    ``work_dir/predictions/STEP/``.

    Args:
        images: how many.
    """

    def __init__(self, images: int):
        self.images = images

    def before_val_epoch(self, runner: Runner) -> None:
        self.drawn = 0

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None,
                       outputs=None) -> None:
        self._draw(runner, outputs, f'iter_{runner.iter}')

    def before_test_epoch(self, runner: Runner) -> None:
        self.drawn = 0

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch=None,
                        outputs=None) -> None:
        self._draw(runner, outputs, 'test')

    def _draw(self, runner: Runner, outputs, step: str) -> None:
        if not is_main_process():
            return
        for sample in outputs[:self.images - self.drawn]:
            image = mmcv.imread(sample.img_path, channel_order='rgb')
            name = Path(sample.img_path).stem
            draw(runner.visualizer, image, sample,
                 Path(runner.work_dir, 'predictions', step, f'{name}.jpg'), truth=True)
            self.drawn += 1
