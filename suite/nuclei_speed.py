"""How fast nuclei are scored and post-processed: ratios and growth within one run."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from histology.labels import relabel
from histology.metrics import SCORES, nuclei_scores
from histology.postprocess import boundary_instances, hover_watershed
from histology.targets import boundary_classes, hv_maps

from .speed import Timing, measure

CELL = 40  # px of the grid on which nuclei stand, about one in each cell


def toy_nuclei(count: int, side: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A crowd of ellipses of 24 to 44 px, many of them touching, and what a network might
    make of it: moved, grown or shrunk, every tenth one missed.

    Args:
        count: nuclei drawn; at most one per cell, ``(side // CELL) ** 2`` of them.
        side: height and width of the maps in px.

    Returns:
        truth and prediction, side x side int32.
    """
    rng = np.random.default_rng(seed)
    true, pred = np.zeros((2, side, side), np.int32)
    cells = side // CELL
    for number, cell in enumerate(rng.permutation(cells ** 2)[:count], 1):
        centre = CELL * (np.array(divmod(cell, cells))[::-1] + rng.uniform(0.3, 0.7, 2))
        axes, angle = rng.uniform(12, 22, 2), rng.uniform(0, 180)
        _ellipse(true, centre, axes, angle, number)
        if rng.random() < 0.9:
            _ellipse(pred, centre + rng.uniform(-3, 3, 2), axes + rng.uniform(-2, 2, 2), angle,
                     number)
    return true, pred


def _ellipse(labels: np.ndarray, centre: np.ndarray, axes: np.ndarray, angle: float,
             number: int) -> None:
    cv2.ellipse(labels, (tuple(map(float, centre)), tuple(map(float, 2 * axes)), angle), number,
                cv2.FILLED)


def loop_scores(true: np.ndarray, pred: np.ndarray) -> dict[str, float]:
    """``nuclei_scores`` by masks of the whole image, pair by pair of those that overlap, and
    by tables of all pairs; both maps hold a nucleus, with ids 1..N."""
    trues, preds = true.max(), pred.max()
    shared, union = np.zeros((2, trues, preds))
    for t in range(trues):
        one = true == t + 1
        for p in np.unique(pred[one]):
            if p:
                other = pred == p
                shared[t, p - 1] = (one & other).sum()
                union[t, p - 1] = (one | other).sum()
    true_areas = np.array([(true == t + 1).sum() for t in range(trues)])
    pred_areas = np.array([(pred == p + 1).sum() for p in range(preds)])
    near = shared / (union + 1e-6)

    def jaccard(rows: np.ndarray, columns: np.ndarray) -> float:
        some = near[rows, columns] > 0
        rows, columns = rows[some], columns[some]
        left = np.delete(true_areas, rows).sum() + np.delete(pred_areas, columns).sum()
        return shared[rows, columns].sum() / (union[rows, columns].sum() + left)

    matched = shared / np.maximum(union, 1) > 0.5
    dq = matched.sum() / ((trues + preds) / 2)
    sq = (shared[matched] / union[matched]).sum() / (matched.sum() + 1e-6)
    dice = 2 * ((true > 0) & (pred > 0)).sum() / ((true > 0).sum() + (pred > 0).sum())
    aji = jaccard(np.arange(trues), near.argmax(1))
    aji_plus = jaccard(*linear_sum_assignment(-near))
    return dict(zip(SCORES, (dice, aji, aji_plus, dq, sq, dq * sq)))


class Comparison(NamedTuple):
    """Seconds of the metrics and of the loop over pairs, and their largest difference."""

    ours: Timing
    loop: Timing
    difference: float


def compare_scores(count: int, side: int, repeats: int) -> Comparison:
    """The metrics beside the loop over pairs, on one pair of maps."""
    maps = [relabel(labels) for labels in toy_nuclei(count, side)]
    found = {}

    def call(scores: Callable[..., dict[str, float]]) -> None:
        found[scores] = scores(*maps)

    forms = nuclei_scores, loop_scores
    timings = measure([lambda form=form: call(form) for form in forms], repeats, warmup=0)
    ours, loop = (found[form] for form in forms)
    return Comparison(*timings, max(abs(ours[name] - loop[name]) for name in SCORES))


class Cost(NamedTuple):
    """Seconds of a call, and bytes that it adds to the process at its peak."""

    timing: Timing
    memory: int


def costs(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, Cost]:
    """What each call takes, timed in turns after one round to warm up."""
    timings = measure(list(calls.values()), repeats, warmup=1)
    return {name: Cost(timing, peak_resident(call))
            for (name, call), timing in zip(calls.items(), timings)}


def peak_resident(call: Callable[[], object]) -> int:
    """Most bytes of main memory that the process held above what it had before a call,
    whoever allocated them; Linux only."""
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak
    before = _resident('VmRSS')
    call()
    return _resident('VmHWM') - before


def _resident(entry: str) -> int:
    lines = Path('/proc/self/status').read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(entry)))


def score_costs(counts: Sequence[int], side: int, repeats: int) -> list[Cost]:
    """What the metrics take on maps of equal size with these numbers of nuclei."""
    pairs = [toy_nuclei(count, side) for count in counts]
    calls = {str(count): lambda pair=pair: nuclei_scores(*pair)
             for count, pair in zip(counts, pairs)}
    return list(costs(calls, repeats).values())


def target_costs(count: int, side: int, repeats: int) -> dict[str, Cost]:
    """What the targets of a training crop take."""
    true, _ = toy_nuclei(count, side)
    return costs({make.__name__: lambda make=make: make(true)
                  for make in (hv_maps, boundary_classes)}, repeats)


def postprocess_costs(count: int, side: int, repeats: int) -> dict[str, tuple[Cost, float]]:
    """What post-processing takes on the maps that a perfect network gives, and the PQ of
    its nuclei."""
    true, _ = toy_nuclei(count, side)
    probability, hv = (true > 0).astype(np.float32), hv_maps(true)
    classes = np.stack([boundary_classes(true) == k for k in range(3)]).astype(np.float32)
    calls = dict(hover_watershed=lambda: hover_watershed(probability, hv),
                 boundary_instances=lambda: boundary_instances(classes))
    return {name: (cost, nuclei_scores(true, calls[name]())['pq'])
            for name, cost in costs(calls, repeats).items()}
