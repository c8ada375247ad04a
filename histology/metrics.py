"""How well nuclei are found: Dice, AJI, AJI+ and panoptic quality of two label maps.

The definitions are those of HoVer-Net's evaluation code (Graham et al., Med. Image Anal. 58,
2019, arXiv 1812.06499), whose AJI is that of Kumar et al. (IEEE TMI 36(7), 2017): the best
prediction of each nucleus, which several nuclei may share. AJI+ pairs one to one. A label
map is H x W, 0 for background by value, any other number for one nucleus; gaps between ids
cost nothing.

Everything follows from the areas and the sparse table of shared pixels, which is counted
over runs of equal pixels: time grows with what is there, never with pairs of nuclei.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from scipy.spatial.distance import cdist

from .errors import DataError

SCORES = ('dice', 'aji', 'aji_plus', 'dq', 'sq', 'pq')
RADIUS = 12  # px between the centroids of a true nucleus and its detection, at 40x
_EPSILON = 1e-6  # of the reference, in the IoU of AJI and in SQ


class Overlaps(NamedTuple):
    """What two label maps share; nuclei are counted from 0 in the order of their ids.

    Attributes:
        true_ids, pred_ids: of the nuclei, ascending.
        true_areas, pred_areas: pixels of each nucleus.
        true, pred: the nuclei of each pair that shares pixels, by true, then by pred.
        shared: pixels of each pair.
    """

    true_ids: np.ndarray
    pred_ids: np.ndarray
    true_areas: np.ndarray
    pred_areas: np.ndarray
    true: np.ndarray
    pred: np.ndarray
    shared: np.ndarray

    @property
    def union(self) -> np.ndarray:
        """Pixels that either nucleus of each pair covers."""
        return self.true_areas[self.true] + self.pred_areas[self.pred] - self.shared

    @property
    def matched(self) -> np.ndarray:
        """Whether a pair's IoU is above one half, which no nucleus reaches twice: bool."""
        return 2 * self.shared > self.union


def nuclei_scores(true: np.ndarray, pred: np.ndarray) -> dict[str, float]:
    """Dice, AJI, AJI+, DQ, SQ and PQ of one image, each in [0, 1].

    A perfect prediction of n nuclei has SQ = n / (n + 1e-6), as in the reference. Where it
    fails, our convention: no nucleus in one of the maps gives 0 everywhere, none in both
    gives nan everywhere, and a mean over images leaves such an image out.

    Args:
        true, pred: label maps, H x W, of any dtype that holds integers >= 0.

    Returns:
        a score per name of ``SCORES``.

    Raises:
        DataError: the maps differ in shape, or one of them is no label map.
    """
    return scores_of(overlaps(true, pred))


def scores_of(found: Overlaps) -> dict[str, float]:
    """``nuclei_scores`` from the overlaps of the two maps."""
    trues, preds = len(found.true_areas), len(found.pred_areas)
    if not trues and not preds:
        return dict.fromkeys(SCORES, float('nan'))
    dice = 2 * found.shared.sum() / (found.true_areas.sum() + found.pred_areas.sum())
    iou = found.shared / (found.union + _EPSILON)
    aji = _jaccard(found, _best(found, iou))
    aji_plus = _jaccard(found, _assigned(found, iou))
    quality = _panoptic(trues, preds, (found.shared / found.union)[found.matched])
    return dict(zip(SCORES, map(float, (dice, aji, aji_plus, *quality))))


def overlaps(true: np.ndarray, pred: np.ndarray,
             names: tuple[str, str] = ('true', 'pred')) -> Overlaps:
    """Areas of the nuclei of two label maps, and the pairs of nuclei that share pixels.

    Args:
        names: of the maps, for errors.

    Raises:
        DataError: see ``nuclei_scores``.
    """
    true, pred = map(_checked, (true, pred), names)
    if true.shape != pred.shape:
        raise DataError('{} is {} x {} pixels, {} is {} x {}; compare maps of one image at its '
                        'own size'.format(names[0], *true.shape, names[1], *pred.shape))
    true, pred, length = _runs(true, pred)
    (true_ids, true), (pred_ids, pred) = map(_nuclei, (true, pred), names)
    table = sparse.coo_array((length, (true, pred)), (len(true_ids), len(pred_ids))).tocsr()
    pairs = table[1:, 1:].tocoo()
    return Overlaps(true_ids[1:], pred_ids[1:], table.sum(1)[1:], table.sum(0)[1:],
                    pairs.row, pairs.col, pairs.data)


def _checked(labels: np.ndarray, name: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in 'biuf':
        raise DataError(f'a label map is H x W integers, {name} is {labels.dtype} of shape '
                        f'{labels.shape}; pass one channel of instance ids')
    return labels


def _runs(true: np.ndarray, pred: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both ids and the length of every run, in reading order, in which neither id changes."""
    true, pred = true.ravel(), pred.ravel()
    new = np.ones(true.size, bool)
    np.not_equal(true[1:], true[:-1], out=new[1:])
    new[1:] |= pred[1:] != pred[:-1]
    starts = np.flatnonzero(new)
    return true[starts], pred[starts], np.diff(starts, append=true.size)


def _nuclei(values: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """All ids, background first even if it has no pixel, and the place of each value there."""
    ids, places = np.unique(np.concatenate([np.zeros(1, values.dtype), values]),
                            return_inverse=True)
    if values.dtype.kind == 'f':
        wrong = ids[~np.isfinite(ids) | (ids != np.rint(ids)) | (ids < 0)]
    else:
        wrong = ids[ids < 0]
    if len(wrong):
        raise DataError(f'ids of a label map are integers from 0 (background) on, {name} holds '
                        f'{wrong[0]}; pass instance ids, not probabilities or signed codes')
    return ids, places[1:]


def _jaccard(found: Overlaps, chosen: np.ndarray) -> float:
    """Shared pixels of the chosen pairs over their unions and all nuclei left over."""
    left = found.true_areas.sum() + found.pred_areas.sum()
    left -= found.true_areas[found.true[chosen]].sum()
    left -= found.pred_areas[np.unique(found.pred[chosen])].sum()
    return found.shared[chosen].sum() / (found.union[chosen].sum() + left)


def _best(found: Overlaps, iou: np.ndarray) -> np.ndarray:
    """For every true nucleus its pair of largest IoU, of equal ones the first."""
    order = np.lexsort((-iou, found.true))
    return order[np.unique(found.true[order], return_index=True)[1]]


def _assigned(found: Overlaps, iou: np.ndarray) -> np.ndarray:
    """Pairs, one to one, of the largest sum of IoU.

    Each true nucleus may also stay alone, with a column of its own: then all can be matched,
    and the sparse solver neither needs components nor a table of all pairs. It takes zeros
    for missing pairs, hence the ones.
    """
    trues, preds = len(found.true_areas), len(found.pred_areas)
    alone = np.arange(trues)
    weights = sparse.coo_array(
        (np.concatenate([1 + iou, np.ones(trues)]),
         (np.concatenate([found.true, alone]), np.concatenate([found.pred, preds + alone]))),
        shape=(trues, preds + trues)).tocsr()
    rows, columns = min_weight_full_bipartite_matching(weights, maximize=True)
    partner = np.full(trues, -1)
    partner[rows] = columns
    return np.flatnonzero(partner[found.true] == found.pred)


def _panoptic(trues: int, preds: int, iou: np.ndarray) -> tuple[float, float, float]:
    """DQ, SQ and PQ from the numbers of nuclei and the IoU of the matched pairs; nan where
    there are no nuclei at all."""
    if not trues and not preds:
        return (float('nan'),) * 3
    dq = 2 * len(iou) / (trues + preds)
    sq = iou.sum() / (len(iou) + _EPSILON)
    return dq, sq, dq * sq


# Types


@dataclass(frozen=True)
class TypeCounts:
    """What becomes of the nuclei of one image; sums over images give the F1 of a data set.

    A pair is a true nucleus and its detection. Arrays have one entry per class.

    Attributes:
        pairs, missed, spurious: numbers of pairs, of true nuclei and of predictions alone.
        right: pairs with this class on both sides.
        wrong: pairs with this class on one side.
        missed_of, spurious_of: nuclei of this class without a partner.
        pq: panoptic quality of this image's nuclei of this class; nan if it has none.
    """

    pairs: int
    missed: int
    spurious: int
    right: np.ndarray
    wrong: np.ndarray
    missed_of: np.ndarray
    spurious_of: np.ndarray
    pq: np.ndarray


def type_scores(true: np.ndarray, true_types: np.ndarray, pred: np.ndarray,
                pred_types: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Detection F1, and F1 and PQ of every type, of one image; nan for a type it lacks.

    Args:
        true, pred: label maps, H x W.
        true_types, pred_types: H x W, 0 no type, k the k-th name; a nucleus has the type of
            most of its pixels, those without a type set aside.
        names: of the types.

    Returns:
        ``detection_f1`` and, per name, ``NAME/f1`` and ``NAME/pq``.

    Raises:
        DataError: see ``nuclei_scores``; or a type without a name.
    """
    return f1_scores([type_counts(true, true_types, pred, pred_types, names)], names)


def type_counts(true: np.ndarray, true_types: np.ndarray, pred: np.ndarray,
                pred_types: np.ndarray, names: Sequence[str]) -> TypeCounts:
    """The counts behind ``type_scores``, to be pooled over images by ``f1_scores``.

    Nuclei are paired one to one by the least sum of distances between centroids, all nuclei
    taking part; then pairs further apart than ``RADIUS`` are dissolved, as in the reference.
    The table of all distances takes 8 bytes per pair.
    """
    found = overlaps(true, pred)
    true_of = _types(true, true_types, names, 'true')
    pred_of = _types(pred, pred_types, names, 'pred')
    distance = cdist(_centroids(true), _centroids(pred))
    rows, columns = linear_sum_assignment(distance)
    near = distance[rows, columns] <= RADIUS
    rows, columns = rows[near], columns[near]

    classes = np.arange(1, len(names) + 1)[:, None]
    left, right = true_of[rows] == classes, pred_of[columns] == classes
    alone = np.delete(true_of, rows), np.delete(pred_of, columns)
    iou = (found.shared / found.union)[found.matched]
    sides = true_of[found.true[found.matched]], pred_of[found.pred[found.matched]]
    pq = [_panoptic((true_of == k).sum(), (pred_of == k).sum(),
                    iou[(sides[0] == k) & (sides[1] == k)])[2] for k in classes[:, 0]]
    return TypeCounts(len(rows), *map(len, alone), (left & right).sum(1), (left ^ right).sum(1),
                      *((one == classes).sum(1) for one in alone), np.array(pq))


def f1_scores(counts: Sequence[TypeCounts], names: Sequence[str]) -> dict[str, float]:
    """The scores of ``type_scores`` for a data set.

    F1 is taken once, of the counts of all images, as HoVer-Net does: detection F1 = 2 TP /
    (2 TP + FP + FN), and for a type 2 right / (2 right + 2 wrong + missed + spurious). PQ is
    the mean over the images in which the type occurs, in truth or prediction (ours).
    """
    def total(name: str) -> np.ndarray | int:
        return sum(getattr(one, name) for one in counts)

    hits = 2 * total('pairs')
    scores = dict(detection_f1=_ratio(hits, hits + total('missed') + total('spurious')))
    right = 2 * total('right')
    alone = total('missed_of') + total('spurious_of')
    for k, name in enumerate(names):
        pq = [one.pq[k] for one in counts if not np.isnan(one.pq[k])]
        scores[f'{name}/f1'] = _ratio(right[k], right[k] + 2 * total('wrong')[k] + alone[k])
        scores[f'{name}/pq'] = _ratio(sum(pq), len(pq))
    return scores


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float('nan')


def _types(labels: np.ndarray, types: np.ndarray, names: Sequence[str],
           which: str) -> np.ndarray:
    """Type of every nucleus, in the order of ids; 0 where no pixel has one."""
    votes = overlaps(labels, types, (which, f'{which}_types'))
    if votes.pred_ids.max(initial=0) > len(names):
        raise DataError(f'{which}_types goes up to {votes.pred_ids[-1]:g}, but there are '
                        f'{len(names)} types: {", ".join(names)}')
    table = np.zeros((len(votes.true_ids), len(names) + 1), np.int64)
    table[votes.true, votes.pred_ids[votes.pred].astype(np.int64)] = votes.shared
    return table.argmax(1)


def _centroids(labels: np.ndarray) -> np.ndarray:
    """Mean row and column of every nucleus, in the order of ids: N x 2."""
    where = np.nonzero(labels)
    _, nucleus, area = np.unique(np.asarray(labels)[where], return_inverse=True,
                                 return_counts=True)
    return np.stack([np.bincount(nucleus, axis, len(area)) / area for axis in where], 1)
