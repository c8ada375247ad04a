"""Contours of nuclei: where they are drawn, in which colours, and what is written to files."""
from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, PixelData
from mmengine.utils import ManagerMixin
from PIL import Image

from histology.draw import NucleiVisualizer, outline
from histology.errors import DataError
from histology.export import nuclei_list, save_labels
from tests.slides import slide

PALETTE = [(250, 190, 40), (60, 130, 230)]


@pytest.fixture
def visualizer(request):
    made = NucleiVisualizer(name=request.node.name)
    made.dataset_meta = dict(classes=('a', 'b'), palette=PALETTE)
    yield made
    ManagerMixin._instance_dict.clear()


def test_rims_are_drawn_and_nothing_else():
    image, labels = slide(64, 96)
    before = image.copy()
    drawn = outline(image, labels)
    inner = np.stack([cv2.erode((labels == number).astype(np.uint8), np.ones((3, 3)),
                                borderValue=1) for number in range(1, labels.max() + 1)]).any(0)
    changed = (drawn != image).any(-1)
    assert not changed[(labels == 0) | inner].any()
    rim = (labels > 0) & (cv2.erode((labels > 0).astype(np.uint8),
                                    cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))) == 0)
    assert changed[rim].all()
    np.testing.assert_array_equal(image, before)


def test_touching_nuclei_have_a_line_between_them_in_two_colours():
    labels = np.zeros((12, 20), np.int32)
    labels[2:10, 2:10], labels[2:10, 10:18] = 1, 2
    drawn = outline(np.zeros((12, 20, 3), np.uint8), labels)
    left, right = drawn[5, 9].astype(int), drawn[5, 10].astype(int)
    assert np.abs(left - right).max() > 100
    assert not drawn[5, 5].any() and not drawn[5, 13].any()


def test_successive_ids_differ_and_none_looks_stained():
    labels = np.arange(1, 301, dtype=np.int32).reshape(1, 300).repeat(3, 0)
    colours = outline(np.zeros((3, 300, 3), np.uint8), labels)[1].astype(int)
    assert np.abs(np.diff(colours, axis=0)).max(1).min() > 80
    red, green, blue = colours.T
    assert not ((red > green) & (blue > green)).any()  # haematoxylin and eosin: green is least


def test_types_have_their_own_colours():
    labels = np.zeros((10, 24), np.int32)
    labels[2:8, 2:8], labels[2:8, 12:18] = 1, 2
    types = np.where(labels == 1, 2, labels // 2).astype(np.uint8)
    drawn = outline(np.zeros((10, 24, 3), np.uint8), labels, types, PALETTE)
    assert tuple(drawn[2, 4]) == PALETTE[1] and tuple(drawn[2, 14]) == PALETTE[0]


@pytest.mark.parametrize('typed', [False, True])
def test_truth_lies_beside_prediction(visualizer, tmp_path, typed):
    image, labels = slide(96, 128)
    cv2.imwrite(str(tmp_path / 'labels.png'), labels.astype(np.uint16))
    cv2.imwrite(str(tmp_path / 'types.png'), (labels > 0).astype(np.uint8))
    sample = BaseDataElement(metainfo=dict(
        label_path=str(tmp_path / 'labels.png'),
        type_path=str(tmp_path / 'types.png') if typed else None))
    sample.pred_nuclei = PixelData(labels=torch.zeros(1, 96, 128, dtype=torch.int32))
    if typed:
        sample.pred_nuclei.types = torch.zeros(1, 96, 128, dtype=torch.uint8)
    rgb = np.ascontiguousarray(image[..., ::-1])
    visualizer.add_datasample('pair', rgb, sample, out_file=str(tmp_path / 'pair.png'))
    pair = cv2.imread(str(tmp_path / 'pair.png'))[..., ::-1]
    large = cv2.resize(rgb, None, fx=6, fy=6, interpolation=cv2.INTER_CUBIC)
    assert pair.shape == (576, 2 * 768 + 6, 3)
    np.testing.assert_array_equal(pair[:, -768:], large)  # nothing was predicted
    changed = (pair[:, :768] != large).any(-1)
    assert 0 < changed.sum() < 0.25 * changed.size
    assert not changed[labels.repeat(6, 0).repeat(6, 1) == 0].any()
    if typed:
        assert (pair[:, :768][changed] == PALETTE[0]).all()
    visualizer.add_datasample('one', rgb, sample, draw_gt=False, out_file=str(tmp_path / 'o.png'))
    assert cv2.imread(str(tmp_path / 'o.png')).shape == (576, 768, 3)


def test_truth_that_is_gone_is_one_line(visualizer, tmp_path):
    sample = BaseDataElement(metainfo=dict(label_path=str(tmp_path / 'gone.png')))
    with pytest.raises(DataError, match='gone.png is missing or truncated; prepare'):
        visualizer.add_datasample('x', np.zeros((8, 8, 3), np.uint8), sample)


# Files

def test_label_maps_are_written_without_loss(tmp_path):
    _, labels = slide(64, 96)
    path = save_labels(labels, tmp_path / 'a.tif')
    assert path.name == 'a.tif.labels.png'
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored, labels)
    labels = np.arange(70000, dtype=np.int32).reshape(200, 350)
    path = save_labels(labels, tmp_path / 'b.png')
    assert path.name == 'b.png.labels.tif'
    np.testing.assert_array_equal(np.asarray(Image.open(path)), labels)


def test_the_list_names_every_nucleus():
    labels = np.zeros((20, 30), np.int32)
    labels[2:5, 4:11], labels[10:14, 20:22] = 1, 2
    types = np.where(labels == 1, 2, labels // 2).astype(np.uint8)
    found = nuclei_list(labels, types, [0.75, 0.5], ('one', 'two'))
    assert found == [dict(id=1, centroid=[7.0, 3.0], area=21, type='two', score=0.75),
                     dict(id=2, centroid=[20.5, 11.5], area=8, type='one', score=0.5)]
    json.dumps(found)
    assert nuclei_list(labels)[0] == dict(id=1, centroid=[7.0, 3.0], area=21)
    assert nuclei_list(np.zeros((4, 4), np.int32), None, []) == []
