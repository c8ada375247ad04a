"""Detectors of nuclei: windows that change nothing, average precision that counts all,
augmentation that keeps boxes on their nuclei."""
from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, TASK_UTILS
from mmengine.structures import InstanceData
from pycocotools import mask as codec
from scipy import ndimage
from torch import nn

import suite.components  # noqa: F401
from histology.augment import Magnify, QuarterTurn, StainJitter
from histology.detector import _Windowed
from histology.labels import encode
from suite import config
from suite.metrics import CocoAP
from tests.conftest import TINY
from tests.slides import slide


class DarkParts:
    """In a detector's place: what is dark and connected in a picture is a nucleus."""

    def __init__(self, classes: int = 1, **test_cfg):
        self.test_cfg = Config(dict(score=0.5, window=192, overlap=32, magnification=1) | test_cfg)
        self.data_preprocessor = Config(dict(pad_size_divisor=32))
        self.roi_head = Config(dict(bbox_head=dict(num_classes=classes)))
        self.seen = []

    def test_step(self, data: dict) -> list:
        image, sample = data['inputs'][0].numpy(), data['data_samples'][0]
        self.seen.append(image.shape[1:])
        parts, count = ndimage.label(image[2] < 160, np.ones((3, 3)))
        height, width = sample.ori_shape
        masks = np.stack([cv2.resize((parts == number).astype(np.uint8), (width, height),
                                     interpolation=cv2.INTER_NEAREST) > 0
                          for number in range(1, count + 1)] or [np.zeros((height, width), bool)])
        masks = masks[masks.any((1, 2))]
        boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in map(
            cv2.boundingRect, masks.astype(np.uint8))], np.float32).reshape(-1, 4)
        # Cut at the rim of a window, a nucleus scores lower, as a detector would have it.
        areas = torch.tensor(masks.sum((1, 2)), dtype=torch.float32)
        sample.pred_instances = InstanceData(
            bboxes=torch.from_numpy(boxes), scores=areas / (areas + 20),
            labels=torch.arange(len(masks)) % self.roi_head.bbox_head.num_classes,
            masks=torch.from_numpy(masks))
        return [sample]


class Windowed(_Windowed, DarkParts):
    pass


def find(detector, image: np.ndarray):
    from mmdet.structures import DetDataSample
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    sample, = detector.test_step(dict(inputs=[tensor], data_samples=[
        DetDataSample(metainfo=dict(img_id=7))]))
    return sample


def test_windows_give_what_one_piece_gives():
    image, labels = slide(420, 540, pitch=30)
    pieces = Windowed()
    found = find(pieces, image)
    alone = Windowed(window=900)
    whole = find(alone, image)
    # The last ones grew, to start on the grid of the strides.
    assert set(pieces.seen) == {(192, 192), (192, 220), (196, 192), (196, 220)}
    assert len(pieces.seen) == 12 and alone.seen == [(420, 540)]
    for sample in (found, whole):
        nuclei = sample.pred_nuclei.labels[0].numpy()
        # The same map, nucleus by nucleus: ids only follow the scores.
        pairs = np.unique(np.stack([labels.ravel(), nuclei.ravel()]), axis=1)
        assert pairs.shape[1] == labels.max() + 1 == nuclei.max() + 1 == 14 * 18 + 1
    assert found.pred_nuclei.labels.dtype == torch.int32 and 'types' not in found.pred_nuclei


def test_every_instance_lies_where_its_mask_says():
    image, labels = slide(400, 300, seed=3)
    sample = find(Windowed(window=160, overlap=32, magnification=2, score=0.9), image)
    found, nuclei = sample.pred_instances, sample.pred_nuclei
    assert (found.scores.diff() <= 0).all() and 0 < len(nuclei.scores) < len(found) == labels.max()
    assert (nuclei.scores >= 0.9).all() and len(nuclei.scores) == nuclei.labels.max()
    overlap = []
    for box, rle in zip(found.bboxes.tolist(), found.masks):
        mask = codec.decode(rle).astype(bool)
        assert mask.shape == (400, 300)
        rows, columns = np.nonzero(mask)
        assert np.abs(np.array(box) - (columns.min(), rows.min(), columns.max() + 1,
                                       rows.max() + 1)).max() <= 1
        true = labels == np.bincount(labels[mask]).argmax()
        overlap.append((mask & true).sum() / (mask | true).sum())
    assert np.mean(overlap) > 0.9
    sample.to_dict()['pred_nuclei']['labels']  # as evaluators see it


def test_types_are_those_of_the_painted_nuclei():
    sample = find(Windowed(classes=3), slide(128, 128)[0])
    types, labels = sample.pred_nuclei.types[0].numpy(), sample.pred_nuclei.labels[0].numpy()
    assert types.dtype == np.uint8 and ((types > 0) == (labels > 0)).all()
    for number in range(1, labels.max() + 1):
        kind, = np.unique(types[labels == number])
        assert kind == sample.pred_instances.labels[number - 1] + 1
    assert set(np.unique(types)) == {0, 1, 2, 3}


def test_an_image_without_nuclei_has_an_empty_map():
    sample = find(Windowed(window=100, overlap=20), np.full((150, 210, 3), 230, np.uint8))
    assert len(sample.pred_instances) == 0 and sample.pred_instances.masks == []
    assert sample.pred_nuclei.labels.shape == (1, 150, 210)
    assert not sample.pred_nuclei.labels.any() and len(sample.pred_nuclei.scores) == 0


# The real ones

PROTOCOLS = [f'{kind}_{data}' for kind in ('maskrcnn', 'cascade')
             for data in ('kumar', 'consep', 'cpm17')]


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_protocols_differ_by_data_and_detector_alone(protocol):
    cfg = config.load(protocol, backbone='dilateformer_tiny', data_root='/d')
    kind, _, data = protocol.partition('_')
    roots = {cfg[f'{part}_dataloader'].dataset.data_root for part in ('train', 'val', 'test')}
    assert roots == {f'/d/{data}/'} and cfg.protocol == protocol
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert evaluator[1].ann_file == f'/d/{data}/annotations/test.json'
        assert evaluator[1].proposal_nums[-1] == 1500
    assert cfg.train_dataloader.dataset.ann_file.endswith('train_tiles.json')
    with config.scope(cfg), torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert type(model).__name__ == dict(maskrcnn='NucleiMaskRCNN',
                                        cascade='NucleiCascadeRCNN')[kind]
    heads = model.roi_head.bbox_head
    heads = list(heads) if isinstance(heads, nn.ModuleList) else [heads]
    assert {head.num_classes for head in heads} == {4 if data == 'consep' else 1}
    stages = cfg.model.train_cfg.rcnn if kind == 'cascade' else [cfg.model.train_cfg.rcnn]
    assert [stage.assigner.pos_iou_thr for stage in stages] == [0.5, 0.6, 0.7][:len(stages)]
    assert {stage.assigner.ignore_iof_thr for stage in [*stages, cfg.model.train_cfg.rpn]} == {0.5}
    assert cfg.model.test_cfg.rcnn.max_per_img == 500
    assert cfg.train_cfg.val_interval == cfg.train_cfg.max_iters  # test images choose nothing


def test_fragments_are_neither_nuclei_nor_background():
    cfg = config.load('maskrcnn_kumar', backbone='dilateformer_tiny')
    fragment = InstanceData(bboxes=torch.tensor([[100., 100, 120, 120]]))
    priors = InstanceData(priors=torch.tensor([[0., 0, 20, 20], [101, 101, 119, 119],
                                               [50, 50, 70, 70]]))
    truth = InstanceData(bboxes=torch.tensor([[0., 0, 20, 20]]), labels=torch.tensor([0]))
    for part in ('rpn', 'rcnn'):
        with config.scope(cfg):
            assigner = TASK_UTILS.build(cfg.model.train_cfg[part].assigner)
        assert assigner.assign(priors, truth, fragment).gt_inds.tolist() == [1, -1, 0]


@pytest.mark.parametrize('protocol', ['maskrcnn_consep', 'cascade_kumar'])
def test_a_network_predicts_an_image_larger_than_its_window(protocol):
    torch.manual_seed(0)
    cfg = config.load(protocol, backbone='dilateformer_tiny', options={
        'model.backbone.arch': TINY, 'model.neck.out_channels': 16,
        'model.roi_head.bbox_head.fc_out_channels': 16,
        'model.roi_head.mask_head.num_convs': 1, 'model.test_cfg.rpn.max_per_img': 20,
        'model.test_cfg.window': 128, 'model.test_cfg.overlap': 16,
        'model.test_cfg.magnification': 1, 'model.test_cfg.rcnn.score_thr': 0.0,
        'model.test_cfg.score': 0.})
    with config.scope(cfg):
        model = MODELS.build(cfg.model).eval()
    sample = find(model, slide(150, 200)[0])
    found = sample.pred_instances
    assert len(found) > 0 and len(found.masks) == len(found)
    assert all(rle['size'] == [150, 200] for rle in found.masks)
    assert sample.pred_nuclei.labels.shape == (1, 150, 200) and sample.pred_nuclei.labels.any()
    assert ('types' in sample.pred_nuclei) == (protocol == 'maskrcnn_consep')
    assert sample.img_id == 7


def test_tests_at_the_magnification_of_training():
    for mini in (False, True):
        cfg = config.load('maskrcnn_kumar', backbone='dilateformer_tiny', mini=mini)
        step, = [step for step in cfg.train_dataloader.dataset.pipeline if step.type == 'Magnify']
        assert step.factor == cfg.model.test_cfg.magnification == (1 if mini else 2)


def test_proposals_are_chosen_by_score():
    cfg = config.load('maskrcnn_kumar', backbone='dilateformer_tiny', options={
        'model.backbone.arch': TINY, 'model.neck.out_channels': 16})
    torch.manual_seed(0)
    with config.scope(cfg):
        head = MODELS.build(cfg.model).rpn_head.eval()
    nn.init.normal_(head.rpn_cls.weight, std=0.5)
    nn.init.constant_(head.rpn_cls.bias, -1.)
    maps = [torch.randn(1, 16, 128 // stride, 128 // stride) for stride in (4, 8, 16, 32, 64)]
    meta = dict(img_shape=(128, 128))
    found, = head.predict_by_feat(*head(maps), batch_img_metas=[meta])
    cfg.model.test_cfg.rpn.nms.score_threshold = 0.
    every, = head.predict_by_feat(*head(maps), batch_img_metas=[meta],
                                  cfg=cfg.model.test_cfg.rpn)
    assert found.scores.min() > 0.2 and len(found) == (every.scores > 0.2).sum() < len(every)


# Average precision

@pytest.mark.parametrize('most, expected', [((100, 500, 1500), 1.), ((1, 10, 100), 100 / 300)])
def test_average_precision_counts_every_nucleus(tmp_path, most, expected):
    """300 nuclei in one image, all found: COCO's 100 detections would hide two thirds."""
    _, labels = slide(480, 640)
    truth = encode(labels)
    (tmp_path / 'test.json').write_text(json.dumps(dict(
        images=[dict(id=7, file_name='a.png', height=480, width=640)],
        categories=[dict(id=1, name='nucleus')],
        annotations=[nucleus | dict(image_id=7, category_id=1, iscrowd=0) for nucleus in truth])))
    metric = CocoAP(ann_file=str(tmp_path / 'test.json'), metric=['segm'], proposal_nums=most)
    metric.dataset_meta = dict(classes=('nucleus',))
    sample = find(Windowed(), slide(480, 640)[0])
    metric.process({}, [sample.to_dict() | dict(ori_shape=(480, 640))])
    assert len(truth) == 300
    assert metric.evaluate(1)['coco/segm_mAP'] == pytest.approx(expected, abs=0.01)


# Augmentation

def packed(count: int = 4) -> dict:
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks
    image, labels = slide(64, 96)
    masks = np.stack([labels == number for number in range(1, count + 1)] or
                     [labels < 0])[:count].astype(np.uint8)
    boxes = [(x, y, x + w, y + h) for x, y, w, h in map(cv2.boundingRect, masks)]
    return dict(img=image, img_shape=(64, 96), gt_masks=BitmapMasks(masks, 64, 96),
                gt_bboxes=HorizontalBoxes(np.array(boxes, np.float32).reshape(-1, 4)))


def boxes_of(results: dict) -> np.ndarray:
    return np.array([(x, y, x + w, y + h) for x, y, w, h in map(
        cv2.boundingRect, results['gt_masks'].masks)])


def test_quarter_turns_keep_boxes_on_their_nuclei():
    seen = set()
    for seed in range(12):
        np.random.seed(seed)
        results = QuarterTurn()(packed())
        np.testing.assert_array_equal(results['gt_bboxes'].tensor.numpy(), boxes_of(results))
        shape = results['img'].shape[:2]
        assert shape == results['img_shape'] == results['gt_masks'].masks.shape[1:]
        dark = results['img'][..., 2] < 160
        assert dark[results['gt_masks'].masks.any(0)].all()
        seen.add(results['img'].tobytes())
    assert len(seen) == 4


def test_magnification_takes_boxes_and_masks_along():
    sides = []
    for seed in range(20):
        np.random.seed(seed)
        results = Magnify(factor=2, jitter=1.25)(packed())
        height, width = results['img'].shape[:2]
        assert results['img_shape'] == (height, width) == results['gt_masks'].masks.shape[1:]
        assert abs(width / height - 1.5) < 0.02
        assert np.abs(results['gt_bboxes'].tensor.numpy() - boxes_of(results)).max() <= 1.5
        sides.append(height / 64)
    assert 1.6 <= min(sides) < 1.75 and 2.3 < max(sides) <= 2.5
    assert Magnify(factor=2)(packed())['img'].shape == (128, 192, 3)


def test_a_tile_without_nuclei_passes():
    for transform in (StainJitter(amount=0.2), Magnify(factor=2, jitter=1.25), QuarterTurn()):
        results = transform(packed(0))
        assert len(results['gt_bboxes']) == len(results['gt_masks']) == 0


def test_stain_jitter_changes_the_depth_of_stains_alone(monkeypatch):
    image = np.random.default_rng(0).integers(1, 256, (40, 40, 3), np.uint8)
    np.testing.assert_array_equal(StainJitter(amount=0)(dict(img=image.copy()))['img'], image)

    from skimage.color import hed_from_rgb
    monkeypatch.setattr(np.random, 'uniform', lambda low, high, size: np.array([1.2, 0.9, 1.]))
    pale = np.maximum(image, 80)
    jittered = StainJitter(amount=0.2)(dict(img=pale))['img']
    before, after = (-np.log(part[..., ::-1] / 255.) @ hed_from_rgb for part in (pale, jittered))
    for stain, factor in enumerate((1.2, 0.9, 1.)):
        assert np.polyfit(before[..., stain].ravel(), after[..., stain].ravel(), 1)[0] == \
            pytest.approx(factor, abs=0.02)
