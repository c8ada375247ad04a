"""Test-time augmentation: views are merged into what one view of the image would give."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, TRANSFORMS

from backbones import UserError
from suite import config, run

RESIZE = dict(type='Resize', scale=(160, 120), keep_ratio=True)
KEYS = ('img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')


def flip(prob: float, direction: str = 'horizontal') -> dict:
    return dict(type='RandomFlip', prob=prob, direction=direction)


class Detector:
    """A random detector that tells things apart, with and without views."""

    def __init__(self, cfg, path: Path):
        self.cfg, self.path = cfg, path
        torch.manual_seed(0)
        with config.scope(cfg):
            self.merging = MODELS.build(ConfigDict(**cfg.tta_model, module=cfg.model)).eval()
        self.plain = self.merging.module
        for name, module in self.plain.named_modules():
            if name.endswith(('fc_cls', 'conv_logits')):
                # As if trained: what all outputs share says nothing, the rest a lot.
                module.register_forward_hook(lambda *call: 20 * (call[-1] - call[-1].mean(0)))

    def read(self, steps: list[dict], path: Path | None = None) -> dict:
        with config.scope(self.cfg):
            pipeline = Compose([TRANSFORMS.build(step)
                                for step in (dict(type='LoadImage'), *steps)])
        return pseudo_collate([pipeline(dict(img_path=str(path or self.path)))])

    @torch.no_grad()
    def one(self, path: Path | None = None, resize: dict = RESIZE):
        pack = dict(type='PackDetInputs', meta_keys=KEYS[:4])
        return self.plain.test_step(self.read([resize, pack], path))[0].pred_instances

    def merged(self, *views: list[dict]):
        pack = [dict(type='PackDetInputs', meta_keys=KEYS)]
        steps = [dict(type='TestTimeAug', transforms=[*views, pack])]
        sample = self.merging.test_step(self.read(steps))[0]
        assert len(sample.pred_instances.masks) == len(sample.pred_instances.bboxes)
        return sample.pred_instances


@pytest.fixture(params=['maskrcnn_coco', 'cascade_coco'])
def detector(request, tiny, mini_root) -> Detector:
    cfg = tiny(request.param, {'model.test_cfg.rcnn.max_per_img': 12,
                               'tta_model.tta_cfg.max_per_img': 12})
    return Detector(cfg, mini_root / 'coco/val2017/000000500001.jpg')


def same(found, expected, pixels: float = 0.) -> None:
    """The same instances in the same order, but for a share of the pixels of the masks."""
    assert len(expected) == 12
    assert expected.masks.sum() > 1000 and expected.labels.unique().numel() > 1
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.bboxes, expected.bboxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    assert (found.masks ^ expected.masks).sum() <= pixels * expected.masks.sum()


def test_identical_views_change_nothing(detector):
    expected = detector.one()
    same(detector.merged([RESIZE], [flip(0.), flip(0.)]), expected)


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal'])
def test_a_flipped_view_is_mapped_back(detector, direction, tmp_path):
    code = dict(horizontal=1, vertical=0, diagonal=-1)[direction]
    mirrored = cv2.flip(cv2.imread(str(detector.path)), code)
    cv2.imwrite(str(tmp_path / 'mirrored.png'), mirrored)
    expected = detector.one(tmp_path / 'mirrored.png')
    height, width = mirrored.shape[:2]
    if code:
        expected.bboxes[:, [0, 2]] = width - expected.bboxes[:, [2, 0]]
        expected.masks = expected.masks.flip(-1)
    if code < 1:
        expected.bboxes[:, [1, 3]] = height - expected.bboxes[:, [3, 1]]
        expected.masks = expected.masks.flip(-2)
    same(detector.merged([RESIZE], [flip(1., direction)]), expected, pixels=1e-3)


def test_several_scales_merge_to_boxes_and_masks_of_the_image(detector):
    larger = dict(RESIZE, scale=(240, 180))
    found = detector.merged([RESIZE, larger], [flip(0.), flip(1.)])
    height, width = cv2.imread(str(detector.path)).shape[:2]
    assert found.masks.shape == (12, height, width) and found.masks.dtype == torch.bool
    single = torch.cat([detector.one().scores, detector.one(resize=larger).scores])
    assert found.scores.max() >= single.max() - 1e-5
    assert (found.scores.diff() <= 0).all()
    assert (found.bboxes >= 0).all() and (found.bboxes[:, 2] <= width).all()
    inside = [mask[int(y1):int(y2) + 1, int(x1):int(x2) + 1].sum() == mask.sum()
              for mask, (x1, y1, x2, y2) in zip(found.masks, found.bboxes.tolist())]
    assert all(inside)


def test_finding_nothing_is_no_error(detector):
    detector.plain.roi_head.test_cfg.score_thr = 1.1
    found = detector.merged([RESIZE], [flip(0.), flip(1.)])
    assert found.masks.shape == (0, *cv2.imread(str(detector.path)).shape[:2])
    assert found.bboxes.shape == (0, 4)


@pytest.fixture
def segment(tiny, mini_root) -> Callable:
    """``segment(flips, ratio)``: the label map merged over views of these flips."""
    cfg = tiny('upernet_ade20k')
    torch.manual_seed(0)
    with config.scope(cfg):
        model = MODELS.build(ConfigDict(**cfg.tta_model, module=cfg.model)).eval()
    path = mini_root / 'ade/ADEChallengeData2016/images/validation/ADE_val_00000001.jpg'

    @torch.no_grad()
    def run(*flips: float) -> torch.Tensor:
        resize = dict(type='Resize', scale_factor=1.0, keep_ratio=True)
        steps = [dict(type='LoadImage')]
        if flips:
            steps.append(dict(type='TestTimeAug', transforms=[
                [resize], [flip(prob) for prob in flips], [dict(type='PackSegInputs')]]))
        else:
            steps += resize, dict(type='PackSegInputs')
        with config.scope(cfg):
            pipeline = Compose([TRANSFORMS.build(step) for step in steps])
        data = pseudo_collate([pipeline(dict(img_path=str(path), reduce_zero_label=True))])
        sample = (model if flips else model.module).test_step(data)[0]
        return sample.pred_sem_seg.data.squeeze()
    return run


def test_views_of_a_segmentor(segment):
    plain = segment()
    assert plain.shape == (160, 200) and plain.unique().numel() > 1
    assert torch.equal(segment(0., 0.), plain)
    both = segment(0., 1.)
    assert both.shape == plain.shape and not torch.equal(both, segment(1.))
    assert torch.equal(both, segment(1., 0.))


def test_a_protocol_without_views_says_so(tiny, tmp_path):
    cfg = tiny('upernet_kumar')
    with pytest.raises(UserError, match='upernet_kumar has no views to merge; leave --tta out'):
        run.test(cfg, str(tmp_path / 'any.pth'), tta=True)
