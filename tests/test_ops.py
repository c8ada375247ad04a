"""The stand-in for mmcv's compiled ops against definitions written out by hand."""
from __future__ import annotations

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from suite import ops

ops.install()

import numpy as np  # noqa: E402
from mmcv.ops import RoIAlign, batched_nms, roi_align  # noqa: E402
from mmcv.ops import nms as mmcv_nms  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
stand_in = pytest.mark.skipif(ops.compiled(), reason='compiled mmcv ops are in use here')


def naive_nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int) -> list[int]:
    """The textbook: take the best, drop what overlaps it too much, again."""

    def area(x1, y1, x2, y2):
        return max(x2 - x1 + offset, 0) * max(y2 - y1 + offset, 0)

    def iou(a, b):
        shared = area(*(max(p, q) for p, q in zip(a[:2], b[:2])),
                      *(min(p, q) for p, q in zip(a[2:], b[2:])))
        union = area(*a) + area(*b) - shared
        return shared / union if union else 0.

    boxes = boxes.tolist()
    order = sorted(range(len(boxes)), key=lambda i: -float(scores[i]))
    kept: list[int] = []
    for i in order:
        if all(iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def random_boxes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes on whole pixels, scores all different and exact in bfloat16."""
    draw = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 60, (count, 2), generator=draw)
    size = torch.randint(1, 40, (count, 2), generator=draw)
    scores = (torch.randperm(count, generator=draw) + 1) / 128
    return torch.cat([corner, corner + size], 1).float(), scores


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.3, 0.5, 0.7])
def test_nms_is_the_textbook(threshold, offset):
    kept = set()
    for seed in range(5):
        boxes, scores = random_boxes(80, seed)
        expected = naive_nms(boxes, scores, threshold, offset)
        assert ops.nms(boxes, scores, threshold, offset).tolist() == expected
        kept.add(len(expected))
    assert min(kept) < 80  # something was dropped


@pytest.mark.parametrize('second, iou0, iou1', [
    # 10 x 10 against 10 x 5 inside it: 50 / 100; inclusive: 11 x 6 / 11 x 11.
    ([0., 0., 10., 5.], 50 / 100, 66 / 121),
    # Edges touch: nothing in common; inclusive boxes share a column of 11 pixels.
    ([10., 0., 20., 10.], 0., 11 / 231),
    # One pixel, no area but for inclusive boxes.
    ([3., 3., 3., 3.], 0., 1 / 121),
])
def test_offset_by_hand(second, iou0, iou1):
    boxes = torch.tensor([[0., 0., 10., 10.], second])
    scores = torch.tensor([0.9, 0.8])
    for offset, iou in ((0, iou0), (1, iou1)):
        assert ops.nms(boxes, scores, iou + 1e-4, offset).tolist() == [0, 1]
        if iou:
            assert ops.nms(boxes, scores, iou - 1e-4, offset).tolist() == [0]


def test_overlap_equal_to_the_threshold_is_kept():
    boxes = torch.tensor([[0., 0., 10., 10.], [0., 0., 10., 5.]])
    assert ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5, 0).tolist() == [0, 1]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('offset', [0, 1])
def test_nms_in_other_precisions(dtype, offset):
    boxes, scores = random_boxes(80, 0)
    kept = ops.nms(boxes.to(dtype), scores.to(dtype), 0.4, offset)
    assert kept.tolist() == naive_nms(boxes, scores, 0.4, offset)


@stand_in
def test_offset_counts_where_float16_cannot_add_one():
    # At 2048 and beyond float16 is even: 12 x 1 / 12 x 2 inclusive pixels overlap.
    boxes = torch.tensor([[2048., 0., 2058., 1.], [2048., 0., 2058., 0.]]).half()
    scores = torch.tensor([0.9, 0.8]).half()
    assert ops.nms(boxes, scores, 0.501, 1).tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.499, 1).tolist() == [0]
    wide = torch.tensor([[2048., 0., 2048., 9.], [2048., 0., 2050., 9.]]).half()
    assert ops.nms(wide, scores, 0.34, 1).tolist() == [0, 1]  # 1 of 3 columns
    assert ops.nms(wide, scores, 0.33, 1).tolist() == [0]


def test_nms_of_nothing():
    assert ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5, 0).shape == (0,)
    boxes, kept = mmcv_nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert boxes.shape == (0, 5) and kept.shape == (0,)
    boxes, kept = batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(),
                              dict(type='nms', iou_threshold=0.5), class_agnostic=True)
    assert boxes.shape == (0, 5)


def test_mmcv_nms_thresholds_and_limits():
    boxes, scores = random_boxes(80, 1)
    expected = naive_nms(boxes, scores, 0.3, 0)
    detections, kept = mmcv_nms(boxes, scores, 0.3)
    assert kept.tolist() == expected
    assert torch.equal(detections, torch.cat([boxes, scores[:, None]], 1)[expected])
    good = [i for i in expected if scores[i] > 0.3]
    assert 0 < len(good) < len(expected)
    assert mmcv_nms(boxes, scores, 0.3, score_threshold=0.3)[1].tolist() == good
    assert mmcv_nms(boxes, scores, 0.3, max_num=3)[1].tolist() == expected[:3]


def test_mmcv_nms_of_numpy_arrays():
    boxes, scores = random_boxes(80, 2)
    detections, kept = mmcv_nms(boxes.numpy(), scores.numpy(), 0.3, offset=1)
    assert isinstance(detections, np.ndarray) and isinstance(kept, np.ndarray)
    assert kept.tolist() == naive_nms(boxes, scores, 0.3, 1)


@pytest.mark.parametrize('split', [10000, 10])
def test_batched_nms_keeps_classes_apart(split):
    boxes, scores = random_boxes(60, 3)
    classes = torch.arange(60) % 3
    expected = []
    for members in ((classes == c).nonzero().flatten() for c in range(3)):
        expected += members[naive_nms(boxes[members], scores[members], 0.3, 0)].tolist()
    expected.sort(key=lambda i: -float(scores[i]))
    config = dict(type='nms', iou_threshold=0.3, split_thr=split)
    assert batched_nms(boxes, scores, classes, config)[1].tolist() == expected
    config['max_num'] = 4
    assert batched_nms(boxes, scores, classes, config)[1].tolist() == expected[:4]
    agnostic = batched_nms(boxes, scores, classes, dict(type='nms', iou_threshold=0.3),
                           class_agnostic=True)
    assert agnostic[1].tolist() == naive_nms(boxes, scores, 0.3, 0)


# On a map of 16 x 12 pixels that is drawn at half the image's size.
ROIS = torch.tensor([[0, 4., 4., 20., 16.], [1, 2.5, 3.25, 9., 21.], [0, 7., 7., 7.5, 8.]])


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling', [0, 2])
def test_roi_align_is_torchvisions_forward_and_backward(aligned, sampling):
    x = torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out = roi_align(ours, ROIS, (3, 2), 0.5, sampling, 'avg', aligned)
    expected = torchvision.ops.roi_align(theirs, ROIS, (3, 2), 0.5, sampling, aligned)
    torch.testing.assert_close(out, expected)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert ours.grad.abs().sum() > 1


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling', [0, 2])
def test_roi_align_of_a_plane_is_exact(aligned, sampling):
    # Bilinear sampling reproduces a x + b y + c, and its mean over a bin is its centre.
    y, x = torch.meshgrid(torch.arange(12.), torch.arange(16.), indexing='ij')
    plane = (2 * x - 3 * y + 5)[None, None]
    x1, y1, x2, y2 = 4., 4., 20., 16.
    out = roi_align(plane, torch.tensor([[0, x1, y1, x2, y2]]), (3, 2), 0.5, sampling, 'avg',
                    aligned)
    shift = 0.5 if aligned else 0.
    height, width = (y2 - y1) / 2 / 3, (x2 - x1) / 2 / 2
    for row in range(3):
        for column in range(2):
            centre_x = x1 / 2 - shift + (column + 0.5) * width
            centre_y = y1 / 2 - shift + (row + 0.5) * height
            value = 2 * centre_x - 3 * centre_y + 5
            assert out[0, 0, row, column].item() == pytest.approx(value, abs=1e-5)


def test_roi_align_of_a_constant_spreads_its_gradient():
    x = torch.full((1, 1, 8, 8), 7., requires_grad=True)
    out = roi_align(x, torch.tensor([[0, 1., 1., 7., 7.]]), (2, 2), 1.0, 2, 'avg', True)
    assert torch.allclose(out, torch.full((1, 1, 2, 2), 7.))
    out.sum().backward()
    # Four averages, each of weights that sum to one, and all inside the box.
    assert x.grad.sum().item() == pytest.approx(4)
    assert x.grad[0, 0, 0].sum() == 0 and x.grad[0, 0, 3, 3] > 0


def test_roi_align_by_hand():
    # One bin over the pixel centres 0 and 1, one sample in the middle: the mean of four.
    x = torch.tensor([[[[1., 2.], [3., 10.]]]], requires_grad=True)
    out = roi_align(x, torch.tensor([[0, 0.5, 0.5, 1.5, 1.5]]), (1, 1), 1.0, 1, 'avg', True)
    assert out.item() == 4.
    out.backward()
    assert torch.equal(x.grad, torch.full((1, 1, 2, 2), 0.25))


@pytest.mark.parametrize('aligned', [True, False])
def test_roi_align_gradcheck(aligned):
    x = torch.randn(2, 2, 6, 7, dtype=torch.float64, requires_grad=True,
                    generator=torch.Generator().manual_seed(0))
    rois = torch.tensor([[0, 1., 0., 9., 8.], [1, 3.5, 2.5, 8., 11.]], dtype=torch.float64)
    layer = RoIAlign((2, 3), 0.5, 2, 'avg', aligned)
    assert torch.autograd.gradcheck(lambda t: layer(t, rois), x)


@pytest.mark.parametrize('batch, count', [(2, 0), (0, 0)])
def test_roi_align_of_nothing(batch, count):
    x = torch.zeros(batch, 3, 12, 16, requires_grad=True)
    out = roi_align(x, torch.zeros(count, 5), (7, 7), 0.5, 0, 'avg', True)
    assert out.shape == (0, 3, 7, 7)
    out.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_channels_last_features_give_the_same():
    x = torch.randn(2, 4, 12, 16, generator=torch.Generator().manual_seed(0))
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = x.clone().requires_grad_()
        out = roi_align(leaf.contiguous(memory_format=layout), ROIS, (3, 3), 0.5, 0, 'avg', True)
        out.square().contiguous(memory_format=layout).sum().backward()
        results.append((out.detach(), leaf.grad))
    for plain, last in zip(*results):
        torch.testing.assert_close(plain, last)


@stand_in
@pytest.mark.parametrize('dtype, tolerance', [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize('autocast', [False, True])
def test_roi_align_in_half_precision(dtype, tolerance, autocast):
    rois = torch.tensor([[0, 4., 4., 20., 16.], [1, 2.5, 3.25, 9., 21.]])
    x = torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    half, full = x.clone().requires_grad_(), x.float().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        out = roi_align(half, rois.to(dtype), (3, 3), 0.5, 2, 'avg', True)
    expected = roi_align(full, rois, (3, 3), 0.5, 2, 'avg', True)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)
    out.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(half.grad.float(), full.grad, rtol=tolerance, atol=tolerance)


@stand_in
def test_max_pooling_is_refused():
    with pytest.raises(NotImplementedError, match='max pooling.*compiled.*cure: pip install'):
        RoIAlign((2, 2), pool_mode='max')(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5))


@stand_in
def test_unknown_op_imports_and_names_itself_when_called():
    from mmcv.ops import soft_nms
    boxes, scores = random_boxes(3, 0)
    with pytest.raises(NotImplementedError, match="'softnms'.*cure: pip install.*onedl-mmcv"):
        soft_nms(boxes, scores)


def test_importlib_finds_the_module_and_a_second_install_changes_nothing():
    assert importlib.util.find_spec('mmcv._ext') is not None
    before = sys.modules['mmcv._ext']
    ops.install()
    assert sys.modules['mmcv._ext'] is before and before.nms is not None


def python(*arguments: str, **options) -> subprocess.CompletedProcess:
    """A fresh interpreter that finds the checkout."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)}, **options)


def test_compiled_ops_are_used_where_they_import(tmp_path):
    bodies = dict(good='', broken="raise ImportError('_ext.so: undefined symbol: _ZN2at4_ops')")
    for name, body in bodies.items():
        (tmp_path / name / 'mmcv').mkdir(parents=True)
        (tmp_path / name / 'mmcv/__init__.py').touch()
        (tmp_path / name / 'mmcv/_ext.py').write_text(body)
    code = ("import sys\n"
            "from suite import ops\n"
            "for folder in sys.argv[1:]:\n"
            "    for name in ('mmcv', 'mmcv._ext'):\n"
            "        sys.modules.pop(name, None)\n"
            "    sys.path.insert(0, folder)\n"
            "    ops.install()\n"
            "    ops.install()\n"
            "    print(ops.compiled(), sys.modules['mmcv._ext'].__spec__.origin)\n")
    done = python('-c', code, *(str(tmp_path / name) for name in bodies))
    assert done.stdout.splitlines() == [f'True {tmp_path}/good/mmcv/_ext.py',
                                        f'False {ROOT}/suite/ops.py'], done.stderr


def test_runs_a_script_of_somebody_elses(tmp_path):
    (tmp_path / 'neighbour.py').write_text('WORD = "beside"')
    script = tmp_path / 'script.py'
    script.write_text('import sys, neighbour\nfrom mmcv import _ext\n'
                      'print(__name__, sys.argv, neighbour.WORD, _ext.nms.__name__)\n'
                      'sys.exit(3)\n')
    done = python('-m', 'suite.ops', str(script), '--flag', cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert done.stdout.strip() == f"__main__ {[str(script), '--flag']} beside nms"


@pytest.mark.parametrize('arguments, line', [
    ([], 'usage: python -m suite.ops SCRIPT ARGS...'),
    (['nowhere.py'], 'error: no such script: nowhere.py')])
def test_no_script_is_one_line(monkeypatch, arguments, line):
    monkeypatch.setattr(sys, 'argv', ['ops', *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(ops.__file__, run_name='__main__')
    assert stop.value.code == line
