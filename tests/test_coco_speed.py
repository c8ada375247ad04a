"""faster-coco-eval gives all twelve numbers of pycocotools, crowds and empty images included."""
from __future__ import annotations

import copy
import re

import numpy as np
import pytest

from suite.coco_speed import KINDS, PHASES, compare, toy_results


@pytest.fixture(scope='module')
def results():
    return toy_results(images=40, detections=1200)


def test_what_is_compared(results):
    truth, found = results
    annotated = {one['image_id'] for one in truth['annotations']}
    crowds = sum(one['iscrowd'] for one in truth['annotations'])
    assert 0 < crowds < len(truth['annotations']) / 10 and 30 < len(annotated) < 40
    sizes = np.digitize([one['area'] for one in truth['annotations']], (32 ** 2, 96 ** 2))
    assert (np.bincount(sizes) > 20).all(), 'small, medium and large'
    assert {len(found[kind]) for kind in KINDS} == {1200}
    assert {one['image_id'] for one in found['bbox']} - annotated, 'some on empty images'
    assert len({one['score'] for one in found['bbox']}) < 1200, 'some scores are equal'


def test_seeded():
    assert toy_results(5, 20) == toy_results(5, 20) != toy_results(5, 20, seed=1)


@pytest.mark.parametrize('kind', KINDS)
def test_twelve_equal_numbers(results, kind):
    truth, found = results
    before = copy.deepcopy((truth, found))
    oracle, ours = compare(truth, found[kind], kind, repeats=1).values()
    assert len(oracle.stats) == len(ours.stats) == 12
    assert np.abs(oracle.stats - ours.stats).max() < 1e-12
    assert ((oracle.stats > 0.05) & (oracle.stats < 0.95)).all(), 'none is trivial'
    assert oracle.seconds.shape == ours.seconds.shape == (1, len(PHASES))
    assert (truth, found) == before, 'both start from the same'


def test_crowds_count(results):
    """Without them the numbers are others: they were part of the comparison."""
    truth, found = results
    calm = {**truth, 'annotations': [{**one, 'iscrowd': 0} for one in truth['annotations']]}
    for with_crowds, without in zip(compare(truth, found['segm'], 'segm', 1).values(),
                                    compare(calm, found['segm'], 'segm', 1).values()):
        assert (with_crowds.stats != without.stats).any()


def test_tool_prints_difference_and_ratio(tool):
    done = tool('bench_coco', '--images', 10, '--detections', 100, '--repeats', 1)
    assert done.status == 0, done.err
    differences = re.findall('largest difference of the twelve numbers ([0-9e+-]+),', done.out)
    assert len(differences) == 2 and all(float(one) < 1e-12 for one in differences)
    assert done.out.count('times faster') == 2 and 'of 80 classes, 100 detections' in done.out
