"""How fast COCO's average precision is computed, beside pycocotools, on made-up results."""
from __future__ import annotations

import contextlib
import copy
import io
import time
from typing import NamedTuple

import faster_coco_eval
import numpy as np
from pycocotools import mask as codec
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

HEIGHT, WIDTH, CLASSES = 480, 640, 80
KINDS = 'bbox', 'segm'
PHASES = 'loadRes', 'evaluate', 'accumulate', 'summarize'
EVALUATORS = {'pycocotools': (COCO, COCOeval),
              'faster-coco-eval': (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster)}
_CORNERS = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_CROWDS, _EMPTY = 0.03, 0.05  # shares of the objects, and of the images


class Shape(NamedTuple):
    """A blob: centre and half sizes in px, and its outline's distances from the centre."""

    x: float
    y: float
    half_width: float
    half_height: float
    outline: np.ndarray

    def mask(self) -> dict:
        """COCO's run lengths, as they stand in a JSON file."""
        x = (self.x + self.half_width * self.outline * np.cos(_CORNERS)).clip(0, WIDTH)
        y = (self.y + self.half_height * self.outline * np.sin(_CORNERS)).clip(0, HEIGHT)
        polygon = np.stack([x, y], 1).ravel().tolist()
        run_lengths = codec.merge(codec.frPyObjects([polygon], HEIGHT, WIDTH))
        return dict(size=run_lengths['size'], counts=run_lengths['counts'].decode())


def _shape(rng: np.random.Generator) -> Shape:
    # Half sizes from 4 to 150 px: COCO's small, medium and large.
    half = np.exp(rng.uniform(np.log(4), np.log(150))) * rng.uniform(0.6, 1.4, 2)
    return Shape(rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT), *half,
                 rng.uniform(0.7, 1, len(_CORNERS)))


def _shaken(shape: Shape, rng: np.random.Generator) -> Shape:
    """The same blob as a network might find it, well or not."""
    blur = rng.exponential(0.12)
    moved = rng.normal(0, blur, 2) * (shape.half_width, shape.half_height)
    grown = np.exp(rng.normal(0, blur, 2))
    return Shape(shape.x + moved[0], shape.y + moved[1], shape.half_width * grown[0],
                 shape.half_height * grown[1],
                 (shape.outline * rng.uniform(0.9, 1.1, len(_CORNERS))).clip(0.5, 1))


def toy_results(images: int, detections: int, seed: int = 0) -> tuple[dict, dict[str, list]]:
    """Objects of 80 classes, about 7 in an image, some of them crowds, and what a detector
    might make of them: 3 detections in 4 are a shaken object, one in 5 of these of another
    class, the rest are of nothing. Some images are empty.

    Args:
        images: of 480 x 640 px.
        detections: over all images; scores of three digits, so that some are equal.

    Returns:
        ground truth in the form of COCO's JSON, and the detections for each of ``KINDS``.
    """
    rng = np.random.default_rng(seed)
    annotations, objects = [], []
    for image in range(1, images + 1):
        for _ in range(0 if rng.random() < _EMPTY else rng.poisson(7)):
            shape, category = _shape(rng), int(rng.integers(1, CLASSES + 1))
            mask = shape.mask()
            if area := int(codec.area(mask)):
                objects.append((image, category, shape))
                annotations.append(dict(
                    id=len(objects), image_id=image, category_id=category, segmentation=mask,
                    area=area, bbox=codec.toBbox(mask).tolist(),
                    iscrowd=int(rng.random() < _CROWDS)))
    truth = dict(info={}, images=[dict(id=image, height=HEIGHT, width=WIDTH)
                                  for image in range(1, images + 1)],
                 categories=[dict(id=category, name=str(category))
                             for category in range(1, CLASSES + 1)], annotations=annotations)
    found = {kind: [] for kind in KINDS}
    while len(found['bbox']) < detections:
        if objects and rng.random() < 0.75:
            image, category, shape = objects[rng.integers(len(objects))]
            shape = _shaken(shape, rng)
        else:
            image, category, shape = int(rng.integers(1, images + 1)), 0, _shape(rng)
        if not category or rng.random() < 0.2:
            category = int(rng.integers(1, CLASSES + 1))
        mask = shape.mask()
        if codec.area(mask):
            what = dict(image_id=image, category_id=category, score=round(rng.random(), 3))
            found['bbox'].append(what | dict(bbox=codec.toBbox(mask).tolist()))
            # Without a box, as mmdet hands masks over: their area is that of the mask.
            found['segm'].append(what | dict(segmentation=mask))
    return truth, found


class Result(NamedTuple):
    """An evaluator's twelve numbers, and the seconds of each of ``PHASES``, one row per
    repeat."""

    stats: np.ndarray
    seconds: np.ndarray

    @property
    def total(self) -> float:
        """Seconds of all phases: the median of the repeats."""
        return float(np.median(self.seconds.sum(1)))


def compare(truth: dict, detections: list[dict], kind: str, repeats: int) -> dict[str, Result]:
    """Both evaluators on the same results, in turns. The ground truth is indexed before, as
    a metric does it once for many evaluations.

    Args:
        kind: one of ``KINDS``.
    """
    stats, seconds = {}, {name: [] for name in EVALUATORS}
    with contextlib.redirect_stdout(io.StringIO()):
        indexed = {}
        for name, (dataset, _) in EVALUATORS.items():
            indexed[name] = dataset()
            indexed[name].dataset = copy.deepcopy(truth)
            indexed[name].createIndex()
        for _ in range(repeats):
            for name in EVALUATORS:
                # They add to the entries that they are given.
                fresh = [dict(entry) for entry in detections]
                stats[name], spent = _evaluate(indexed[name], fresh, kind, EVALUATORS[name][1])
                seconds[name].append(spent)
    return {name: Result(stats[name], np.array(seconds[name])) for name in EVALUATORS}


def _evaluate(truth, detections: list[dict], kind: str, evaluator) -> tuple[np.ndarray, list]:
    ends = [time.perf_counter()]
    found = truth.loadRes(detections)
    ends.append(time.perf_counter())
    evaluation = evaluator(truth, found, kind)
    for phase in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
        phase()
        ends.append(time.perf_counter())
    return np.array(evaluation.stats[:12]), np.diff(ends).tolist()
