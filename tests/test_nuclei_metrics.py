"""Nuclei metrics: the reference's figures, a loop over pairs, hand-made types, bad maps, pace."""
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from histology.errors import DataError
from histology.metrics import SCORES, f1_scores, nuclei_scores, overlaps, type_counts, type_scores
from suite.nuclei_speed import compare_scores, loop_scores, score_costs, toy_nuclei

DATA = Path(__file__).parent / 'data'
CASES = json.loads((DATA / 'nuclei_metrics.json').read_text())['cases']


@pytest.fixture(scope='module')
def maps():
    with np.load(DATA / 'nuclei_metrics.npz') as arrays:
        return dict(arrays)


@pytest.fixture(scope='module')
def toy():
    return toy_nuclei(36, 240)


# Reference


@pytest.mark.parametrize('case', CASES, ids=lambda case: case['name'])
def test_reference_figures(case, maps):
    true, pred = (maps[f'{which}_{case["index"]:02}'] for which in ('true', 'pred'))
    assert (true.sum(), pred.sum()) == (case['true_sum'], case['pred_sum'])
    found = nuclei_scores(true, pred)
    assert tuple(found) == SCORES and all(type(score) is float for score in found.values())
    if case['name'] == 'both_empty':
        assert all(np.isnan(score) for score in found.values())
        return
    # The reference fails on the AJI of an empty prediction; the sheet's convention is 0.
    expected = {name: 0. if case[name] is None else case[name] for name in SCORES}
    assert [name for name in SCORES if case[name] is None] == (
        ['aji'] if case['name'] == 'empty_prediction' else [])
    assert found == pytest.approx(expected, abs=1e-9)
    table = overlaps(true, pred)
    assert (len(table.true_areas), len(table.pred_areas)) == (case['num_true'], case['num_pred'])
    assert table.matched.sum() == case['tp']


def test_a_prediction_may_be_chosen_twice_for_aji_alone():
    true = np.array([[1, 1, 1, 2, 2, 0]])
    pred = np.array([[7, 7, 7, 7, 7, 0]])
    found = nuclei_scores(true, pred)
    assert found['aji'] == pytest.approx(5 / (5 + 5))
    assert found['aji_plus'] == pytest.approx(3 / (5 + 2))
    assert found['pq'] == pytest.approx(2 / 3 * 0.6, abs=1e-5)


@pytest.mark.parametrize('seed', range(4))
def test_equal_to_the_loop_over_pairs(seed):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 30, (2, 16, 12)).repeat(rng.integers(1, 4), 1).repeat(3, 2)
    for true, pred in (blocks, toy_nuclei(20, 200, seed)):
        true, pred = (np.unique(one, return_inverse=True)[1].reshape(one.shape)
                      for one in (true, pred))
        assert nuclei_scores(true, pred) == pytest.approx(loop_scores(true, pred), abs=1e-12)


def test_without_any_background():
    true, pred = np.indices((6, 8)) // 2 + 1
    assert nuclei_scores(true, pred) == pytest.approx(loop_scores(true, pred), abs=1e-12)
    assert nuclei_scores(true, true)['aji'] == 1


def test_one_component_of_everything_is_assigned_at_once():
    """3000 columns against 3000 shifted ones: a chain in which each overlaps two."""
    columns = np.arange(1, 3001).repeat(3)[None]
    found = nuclei_scores(columns, np.roll(columns, 1))
    assert found['aji_plus'] == pytest.approx(0.5, abs=1e-3)
    assert found['pq'] == 0, 'an IoU of exactly one half is no match'


# What a label map may be


@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'uint16', 'int64', 'uint64', 'float32',
                                   'float64'])
def test_any_dtype_that_holds_integers(dtype, toy):
    expected = nuclei_scores(*toy)
    kept = [one.copy() for one in toy]
    assert nuclei_scores(toy[0].astype(dtype), toy[1]) == expected
    assert nuclei_scores(*(one.astype(dtype) for one in toy)) == expected
    assert all(np.array_equal(*pair) for pair in zip(kept, toy))


def test_ids_order_and_memory_layout_do_not_matter(toy):
    true, pred = toy
    ids = np.random.default_rng(0).choice(2 ** 40, 50, replace=False) + 1
    ids[0] = 0
    expected = pytest.approx(nuclei_scores(true, pred), abs=1e-12)
    assert nuclei_scores(ids[true], ids[pred]) == expected
    assert nuclei_scores(true.T, pred.T) == expected
    assert nuclei_scores(np.asfortranarray(true), pred) == expected


def test_one_mask_is_one_nucleus():
    mask = np.eye(4, dtype=bool)
    assert nuclei_scores(mask, mask)['dice'] == 1


@pytest.mark.parametrize('value, dtype', [(-1, 'int32'), (1.5, 'float32'), (np.nan, 'float32'),
                                          (np.inf, 'float64'), (-2., 'float64')])
def test_what_is_no_id(value, dtype, toy):
    bad = toy[1].astype(dtype)
    bad[5, 7] = value
    with pytest.raises(DataError, match=rf'integers from 0 .* pred holds {value}; '):
        nuclei_scores(toy[0], bad)
    with pytest.raises(DataError, match=f'true holds {value};'):
        nuclei_scores(bad, toy[1])


def test_what_is_no_map(toy):
    true, pred = toy
    with pytest.raises(DataError, match='true is 240 x 240 pixels, pred is 240 x 200; '):
        nuclei_scores(true, pred[:, :200])
    with pytest.raises(DataError, match=r'pred is int32 of shape \(1, 240, 240\)'):
        nuclei_scores(true, pred[None])
    with pytest.raises(DataError, match='true is complex64'):
        nuclei_scores(true.astype('complex64'), pred)


# Types


def squares(*placed):
    """Label map and types, 64 x 64, of 8 x 8 squares given as (row, column, type)."""
    labels, types = np.zeros((2, 64, 64), np.int32)
    for number, (row, column, kind) in enumerate(placed, 1):
        labels[row:row + 8, column:column + 8] = 10 * number
        types[row:row + 8, column:column + 8] = kind
    return labels, types


TRUE = squares((0, 0, 1), (0, 20, 1), (0, 40, 2), (20, 0, 2), (20, 20, 3))
# Right; of another type; right but too far; missed; right, and a spurious one.
PRED = squares((0, 1, 1), (0, 20, 2), (13, 40, 2), (20, 20, 3), (40, 40, 1))


def test_types_by_hand():
    found = type_scores(*TRUE, *PRED, ('round', 'long', 'other'))
    iou = 56 / 72
    assert found == pytest.approx({
        'detection_f1': 2 * 3 / (2 * 3 + 2 + 2),
        'round/f1': 2 / (2 + 2 * 1 + 1),  # one of another type, one spurious
        'long/f1': 0 / (2 * 1 + 2 + 1),
        'other/f1': 1.,
        'round/pq': iou * 2 / 4, 'long/pq': 0., 'other/pq': 1.}, abs=1e-5)


def test_detections_count_within_twelve_pixels():
    for shift, expected in ((12, 1.), (13, 0.)):
        found = type_scores(*squares((0, 0, 1)), *squares((shift, 0, 1)), ('one',))
        assert found['detection_f1'] == found['one/f1'] == expected


def test_f1_is_pooled_and_pq_averaged():
    first = type_counts(*TRUE, *PRED, ('round', 'long', 'other'))
    second = type_counts(*TRUE, *TRUE, ('round', 'long', 'other'))
    empty = type_counts(*squares(), *squares(), ('round', 'long', 'other'))
    found = f1_scores([first, second, empty], ('round', 'long', 'other'))
    assert found['detection_f1'] == 2 * 8 / (2 * 8 + 4)
    assert found['round/f1'] == 2 * 3 / (2 * 3 + 2 * 1 + 1)
    assert found['round/pq'] == pytest.approx((56 / 72 / 2 + 1) / 2, abs=1e-5)


def test_types_that_are_absent_or_unknown():
    found = type_scores(*TRUE, *PRED, ('round', 'long', 'other', 'rare'))
    assert np.isnan(found['rare/f1']) and np.isnan(found['rare/pq'])
    assert type_scores(*TRUE, *squares(), ('a', 'b', 'c'))['detection_f1'] == 0
    nothing = type_scores(*squares(), *squares(), ('a',))
    assert all(np.isnan(score) for score in nothing.values())
    with pytest.raises(DataError, match='true_types goes up to 3, but there are 2 types: a, b'):
        type_scores(*TRUE, *PRED, ('a', 'b'))
    with pytest.raises(DataError, match='pred is 64 x 64 pixels, pred_types is 32 x 64'):
        type_scores(*TRUE, PRED[0], PRED[1][:32], ('a', 'b', 'c'))


def test_most_pixels_decide_the_type():
    labels, types = squares((0, 0, 2))
    types[:3] = 1
    types[3:6] = 0
    found = type_scores(labels, types, *squares((0, 0, 1)), ('one', 'two'))
    assert found['one/f1'] == 1 and np.isnan(found['two/f1'])


# Pace


def test_fifty_times_faster_than_the_loop():
    found = compare_scores(600, 1000, repeats=1)
    assert found.difference < 1e-12
    assert found.loop.median > 50 * found.ours.median


def test_memory_does_not_grow_with_pairs():
    """3000 x 3000 nuclei: a table of all pairs would take 72 MB."""
    maps = toy_nuclei(3000, 2400)
    tracemalloc.start()
    nuclei_scores(*maps)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40e6


@pytest.mark.slow
def test_time_is_linear_up_to_ten_thousand_nuclei():
    few, many = score_costs((2500, 10000), 4000, repeats=5)
    assert many.timing.median < 5.5 * few.timing.median
    assert many.memory < 300e6
