"""COCO's average precision by faster-coco-eval, without its chatter."""
from __future__ import annotations

import contextlib
import io

from mmdet.evaluation import FasterCocoMetric
from mmengine.registry import METRICS


@METRICS.register_module()
class CocoAP(FasterCocoMetric):
    """mmdet's ``FasterCocoMetric``: ``coco/bbox_mAP``, ``coco/segm_mAP`` and their kin, in
    [0, 1]; the same numbers as pycocotools, several times faster. A detector that finds
    nothing at all has an AP of 0, and not none. Progress of the indexing stays off the
    console; the tables go to the log."""

    def __init__(self, *args, **kwargs):
        with contextlib.redirect_stdout(io.StringIO()):
            super().__init__(*args, **kwargs)

    def compute_metrics(self, results: list) -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            found = super().compute_metrics(results)
        nothing = {f'{kind}_{name}': 0. for kind in {'bbox', 'segm'} & set(self.metrics)
                   for name in ('mAP', 'mAP_50', 'mAP_75')}
        return nothing | found
