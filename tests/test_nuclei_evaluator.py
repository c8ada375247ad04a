"""NucleiMetric: means over images, groups, empty images, types, gaps, several processes."""
import math
import re

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.evaluator import Evaluator
from mmengine.structures import BaseDataElement, PixelData

from histology.errors import DataError
from histology.metrics import SCORES, nuclei_scores, type_counts
from suite.nuclei_speed import toy_nuclei

TYPES = ('round', 'long')


@pytest.fixture
def metric():
    from histology.evaluator import NucleiMetric
    metric = NucleiMetric()
    metric.dataset_meta = dict(classes=TYPES)
    return metric


class Slide:
    """Truth on disk and a prediction, as the models hand it over."""

    def __init__(self, folder, number, true, pred, group=None, typed=False):
        self.true, self.pred, self.group = true, pred, group
        self.types = [np.where(one > 0, 1 + one % 2, 0).astype(np.uint8) for one in (true, pred)]
        self.label_path = str(folder / f'{number}.png')
        self.type_path = str(folder / f'{number}_types.png') if typed else None
        cv2.imwrite(self.label_path, true.astype(np.uint16))
        if typed:
            cv2.imwrite(self.type_path, self.types[0])

    def sample(self, **changed):
        found = dict(labels=torch.from_numpy(self.pred)[None])
        if self.type_path:
            found['types'] = torch.from_numpy(self.types[1])[None]
        meta = dict(img_path='x.png', ori_shape=self.true.shape, label_path=self.label_path,
                    type_path=self.type_path, group=self.group) | changed
        return BaseDataElement(metainfo=meta, pred_nuclei=PixelData(**found)).to_dict()


@pytest.fixture
def slides(tmp_path):
    """Five images in two groups, one of them empty, one with a prediction and no truth."""
    empty = np.zeros((100, 100), np.int32)
    maps = [toy_nuclei(9, 120, 0), toy_nuclei(16, 160, 1), toy_nuclei(4, 80, 2), (empty, empty),
            (empty, np.eye(100, dtype=np.int32))]
    groups = ['same organ'] * 2 + ['different organ'] * 3
    return [Slide(tmp_path, number, *pair, group, typed=True)
            for number, (pair, group) in enumerate(zip(maps, groups))]


def mean(slides, name):
    return float(np.mean([nuclei_scores(one.true, one.pred)[name] for one in slides]))


def test_unweighted_means_of_all_and_of_each_group(metric, slides):
    metric.process({}, [slide.sample() for slide in slides[:3]])
    metric.process({}, [slide.sample() for slide in slides[3:]])
    found = metric.evaluate(5)
    scored = [slides[number] for number in (0, 1, 2, 4)]
    for name in SCORES:
        assert found[f'nuclei/{name}'] == pytest.approx(mean(scored, name))
        assert found[f'nuclei/same_organ/{name}'] == pytest.approx(mean(slides[:2], name))
        assert found[f'nuclei/different_organ/{name}'] == pytest.approx(mean(scored[2:], name))
    assert found['nuclei/left_out'] == 1
    assert 0.3 < found['nuclei/pq'] < found['nuclei/same_organ/pq'] < 1
    assert not metric.results


def test_without_groups_and_types(metric, tmp_path):
    metric.process({}, [Slide(tmp_path, 0, *toy_nuclei(9, 120)).sample()])
    found = metric.evaluate(1)
    assert set(found) == {'nuclei/left_out', *(f'nuclei/{name}' for name in SCORES)}


def test_types(metric, slides):
    metric.process({}, [slide.sample() for slide in slides])
    found = metric.evaluate(5)
    counts = [type_counts(s.true, s.types[0], s.pred, s.types[1], TYPES) for s in slides]
    hits = 2 * sum(one.pairs for one in counts)
    alone = sum(one.missed + one.spurious for one in counts)
    assert found['nuclei/detection_f1'] == pytest.approx(hits / (hits + alone))
    for k, (name, images) in enumerate(zip(TYPES, (3, 4))):  # the lone prediction is long
        quality = [one.pq[k] for one in counts if not math.isnan(one.pq[k])]
        assert len(quality) == images
        assert found[f'nuclei/{name}/pq'] == pytest.approx(np.mean(quality))
        assert 0 < found[f'nuclei/{name}/f1'] < 1


def test_a_prediction_without_types_has_no_type_scores(metric, slides):
    sample = slides[0].sample()
    del sample['pred_nuclei']['types']
    metric.process({}, [sample])
    assert 'nuclei/detection_f1' not in metric.evaluate(1)


def test_only_empty_images(metric, slides):
    metric.process({}, [slides[3].sample()])
    found = metric.evaluate(1)
    assert found == {'nuclei/left_out': 1}


def test_every_image_once(metric, slides):
    samples = [slide.sample() for slide in slides]
    metric.process({}, samples[:4])
    with pytest.raises(DataError, match='4 of 5 images were scored;'):
        metric.evaluate(5)
    metric.results.clear()
    metric.process({}, samples[:4] + samples[:1])
    with pytest.raises(DataError, match=r'4 of 5 .*/0\.png more than once;'):
        metric.evaluate(5)


def test_bad_truth_and_prediction_name_the_image(metric, slides, tmp_path):
    with pytest.raises(DataError, match='gone.png is missing'):
        metric.process({}, [slides[0].sample(label_path=str(tmp_path / 'gone.png'))])
    slides[0].pred, slides[0].types[1] = slides[0].pred[:100], slides[0].types[1][:100]
    with pytest.raises(DataError, match=r'/0\.png: true is 120 x 120 pixels, pred is 100 x 120'):
        metric.process({}, [slides[0].sample()])


def test_small_table(metric, slides, monkeypatch):
    said = []
    monkeypatch.setattr('histology.evaluator.print_log', lambda text, **_: said.append(text))
    metric.process({}, [slide.sample() for slide in slides])
    found = metric.evaluate(5)
    lines = said[0].splitlines()[1:]
    assert re.fullmatch(r' +images +left out +Dice +AJI +AJI\+ +DQ +SQ +PQ', lines[0])
    assert [re.split(r'  +', line)[:3] for line in lines[1:4]] == [
        ['all', '4', '1'], ['same organ', '2', '0'], ['different organ', '2', '1']]
    assert lines[1].endswith(f'{found["nuclei/pq"]:.4f}')
    assert lines[4].startswith('detection f1 ') and len(lines) == 4 + 1 + 4


def test_in_mmengine_s_evaluator(slides):
    from histology.evaluator import NucleiMetric  # noqa: F401  registers
    evaluator = Evaluator(dict(type='NucleiMetric'))
    evaluator.dataset_meta = dict(classes=TYPES)
    samples = []
    for slide in slides:
        plain = slide.sample()
        samples.append(BaseDataElement(
            metainfo={key: value for key, value in plain.items() if key != 'pred_nuclei'},
            pred_nuclei=PixelData(**plain['pred_nuclei'])))
    evaluator.process(samples)
    assert evaluator.evaluate(5)['nuclei/left_out'] == 1


def _share(rank, store, metric, samples, queue):
    dist.init_process_group('gloo', f'file://{store}', rank=rank, world_size=2)
    metric.process({}, samples[rank])
    queue.put(metric.evaluate(5))
    dist.destroy_process_group()


def test_two_processes_measure_what_one_measures(metric, slides, tmp_path, monkeypatch):
    samples = [slide.sample() for slide in slides]
    metric.process({}, samples)
    alone = metric.evaluate(5)
    monkeypatch.chdir(tmp_path)  # where mmengine exchanges results
    # As its sampler deals: in turns, and the first again where they do not come out even.
    shares = samples[::2], samples[1::2] + samples[:1]
    context = torch.multiprocessing.get_context('fork')
    queue = context.SimpleQueue()
    both = [context.Process(target=_share, args=(rank, tmp_path / 'store', metric, shares, queue))
            for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert queue.get() == queue.get() == alone
