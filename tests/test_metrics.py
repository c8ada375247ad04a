"""faster-coco-eval gives pycocotools' numbers, crowds and empty images included."""
import numpy as np
import pytest
import torch

from suite import components, mini  # noqa: F401  registers
from suite.data import CocoInstances


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('mini')
    mini.make_mini(root, ['coco'], images=48)
    return CocoInstances(
        data_root=str(root / 'coco'), ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'), test_mode=True,
        metainfo=dict(classes=mini.MINI_COCO_CLASSES), pipeline=[])


def predictions(data, rng):
    """Shaken boxes and masks of what is there, some with another class, some of nothing."""
    samples = []
    for number in range(len(data)):
        info = data.get_data_info(number)
        boxes, masks, labels = [], [], []
        for instance in info['instances'] * 2:
            x1, y1, x2, y2 = np.array(instance['bbox']) + rng.normal(0, 3, 4)
            x2, y2 = max(x2, x1 + 2), max(y2, y1 + 2)
            boxes.append([x1, y1, x2, y2])
            mask = np.zeros((info['height'], info['width']), bool)
            mask[max(int(y1), 0):int(y2), max(int(x1), 0):int(x2)] = True
            masks.append(mask)
            labels.append(instance['bbox_label'] if rng.random() < 0.8 else rng.integers(3))
        count = len(boxes)
        samples.append(dict(
            img_id=info['img_id'], ori_shape=(info['height'], info['width']),
            pred_instances=dict(
                bboxes=torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
                scores=torch.tensor(rng.random(count), dtype=torch.float32),
                labels=torch.tensor(np.array(labels, np.int64)),
                masks=torch.tensor(np.array(masks).reshape(count, info['height'],
                                                           info['width'])))))
    return samples


def test_equal_to_pycocotools(data, capfd):
    from mmdet.evaluation import CocoMetric

    from suite.metrics import CocoAP
    samples = predictions(data, np.random.default_rng(0))
    found = []
    for metric in (CocoMetric, CocoAP):
        metric = metric(ann_file=data.ann_file, metric=['bbox', 'segm'])
        metric.dataset_meta = data.metainfo
        capfd.readouterr()
        metric.process({}, samples)
        found.append(metric.evaluate(len(samples)))
    said = capfd.readouterr().out.splitlines()
    assert all('mmengine - INFO' in line for line in said), 'the console stays quiet'
    oracle, ours = found
    assert set(ours) == set(oracle) and len(ours) == 12
    assert 0.05 < ours['coco/bbox_mAP'] < 0.95 and 0.05 < ours['coco/segm_mAP'] < 0.95
    for name, value in oracle.items():
        assert ours[name] == pytest.approx(value, abs=1e-9), name


def test_perfect_predictions_score_one(data):
    from suite.metrics import CocoAP
    metric = CocoAP(ann_file=data.ann_file, metric=['bbox'])
    metric.dataset_meta = data.metainfo
    samples = []
    for number in range(len(data)):
        info = data.get_data_info(number)
        real = [i for i in info['instances'] if not i['ignore_flag']]
        samples.append(dict(img_id=info['img_id'], ori_shape=(info['height'], info['width']),
                            pred_instances=dict(
            bboxes=torch.tensor([i['bbox'] for i in real], dtype=torch.float32).view(-1, 4),
            scores=torch.ones(len(real)),
            labels=torch.tensor([i['bbox_label'] for i in real], dtype=torch.int64))))
    metric.process({}, samples)
    assert metric.evaluate(len(samples))['coco/bbox_mAP'] == 1


def test_a_detector_that_finds_nothing_has_no_precision(data):
    from suite.metrics import CocoAP
    metric = CocoAP(ann_file=data.ann_file, metric=['bbox', 'segm'])
    metric.dataset_meta = data.metainfo
    samples = predictions(data, np.random.default_rng(0))
    for sample in samples:
        sample['pred_instances'] = {key: value[:0]
                                    for key, value in sample['pred_instances'].items()}
    metric.process({}, samples)
    assert metric.evaluate(len(samples)) == {
        f'coco/{kind}_{name}': 0. for kind in ('bbox', 'segm')
        for name in ('mAP', 'mAP_50', 'mAP_75')}
