"""The protocols as a whole: they train and evaluate, every parameter takes part, and what
they leave behind runs elsewhere."""
from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor

from backbones import UserError
from suite import components, config, run  # noqa: F401

PROTOCOLS = ('maskrcnn_coco', 'maskrcnn_coco_3x', 'cascade_coco', 'cascade_coco_3x',
             'upernet_ade20k')
METRICS = dict(coco={'coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/segm_mAP', 'coco/segm_mAP_75'},
               ade20k={'mIoU', 'mAcc', 'aAcc'})


def record(work_dir: Path) -> dict:
    return json.loads((work_dir / 'record.json').read_text())


def checkpoint(work_dir: Path) -> str:
    return (work_dir / 'last_checkpoint').read_text().strip()


# Training and testing

@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_trains_and_evaluates(protocol, trained):
    done = record(trained(protocol))
    assert (done['status'], done['protocol'], done['mini']) == ('completed', protocol, True)
    assert METRICS[protocol.split('_')[1]] <= done['metrics'].keys()
    for name, value in done['metrics'].items():
        # COCO says -1 where there is nothing of that size.
        assert 0 <= value <= 100 or name.endswith(('_s', '_m', '_l')) and value == -1, name
    lines = [json.loads(line) for line in next(
        trained(protocol).glob('*/vis_data/scalars.json')).read_text().splitlines()]
    losses = [line['loss'] for line in lines if 'loss' in line]
    assert len(losses) == 2 and all(0.5 < loss < 20 for loss in losses)
    pictures = [path.name for path in trained(protocol).glob('predictions/iter_2/*.jpg')]
    assert len(pictures) == 2
    state = torch.load(checkpoint(trained(protocol)), weights_only=False)
    assert state['meta']['iter'] == 2 and 'optimizer' in state


@pytest.mark.parametrize('protocol', ['cascade_coco', 'upernet_ade20k'])
def test_measures_a_checkpoint_as_training_did(protocol, trained, tiny, tmp_path):
    work_dir = trained(protocol)
    metrics = run.test(tiny(protocol), checkpoint(work_dir), str(tmp_path))
    assert metrics == record(work_dir)['metrics']
    assert len(list(tmp_path.glob('predictions/test/*.jpg'))) == 2
    done = record(tmp_path)
    assert (done['task'], done['status'], done['tta']) == ('test', 'completed', False)
    assert done['config_hash'] == record(work_dir)['config_hash']


def test_measures_no_checkpoint_that_lacks_a_weight(trained, tiny, tmp_path):
    content = torch.load(checkpoint(trained('upernet_ade20k')), weights_only=False)
    del content['state_dict']['decode_head.conv_seg.bias']
    torch.save(content, tmp_path / 'less.pth')
    with pytest.raises(UserError, match='decode_head.conv_seg.bias'):
        run.test(tiny('upernet_ade20k'), str(tmp_path / 'less.pth'), str(tmp_path / 'test'))


@pytest.mark.parametrize('protocol', ['maskrcnn_coco', 'upernet_ade20k'])
def test_measures_merged_views(protocol, trained, tiny, tmp_path):
    cfg = tiny(protocol)
    sizes = cfg.tta_pipeline[1].transforms[0]
    assert len(sizes) * len(cfg.tta_pipeline[1].transforms[1]) >= 6
    del sizes[1:]
    shutil.copy(checkpoint(trained(protocol)), tmp_path / 'copy.pth')
    metrics = run.test(cfg, str(tmp_path / 'copy.pth'), tta=True)
    assert METRICS[protocol.split('_')[1]] <= metrics.keys()
    done = record(tmp_path / 'test_tta')
    assert (done['tta'], done['status'], done['metrics']) == (True, 'completed', metrics)
    assert done['parameters'] == record(trained(protocol))['parameters']


# Every parameter takes part: distributed training stops where one does not

def one_batch(cfg: Config) -> tuple[torch.nn.Module, dict]:
    torch.manual_seed(0)
    with config.scope(cfg):
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
        model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
    return model, model.data_preprocessor(next(iter(loader)), True)


@pytest.mark.parametrize('protocol', ['maskrcnn_coco', 'cascade_coco', 'upernet_ade20k'])
@pytest.mark.parametrize('backbone', ['resnet18', None])
def test_every_parameter_has_a_gradient(protocol, backbone, tiny):
    model, batch = one_batch(tiny(protocol, **(dict(backbone=backbone) if backbone else {})))
    losses = model(**batch, mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    given = {name for name, p in model.named_parameters() if p.grad is not None}
    assert wanted == given and len(wanted) > 50
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


# Memory formats

def misread(input: Tensor, rois: Tensor, output: Tensor, *_, aligned_height: int,
            aligned_width: int, spatial_scale: float, sampling_ratio: int, aligned: bool,
            **others) -> None:
    """RoIAlign as compiled kernels do it that take all memory for row-major."""
    rows = torch.empty(input.shape, device='meta').stride()
    seen = input.as_strided(input.shape, rows)
    output.copy_(torch.ops.torchvision.roi_align(
        seen, rois, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned))


@pytest.fixture(params=['maskrcnn_coco', 'cascade_coco'])
def detector(request, tiny, monkeypatch) -> Iterator:
    """Losses, gradients and predictions of a detector for its feature maps in a format."""
    monkeypatch.setattr(sys.modules['mmcv._ext'], 'roi_align_forward', misread)

    def build(**roi_layer) -> tuple:
        options = {f'model.roi_head.{part}_roi_extractor.roi_layer.{key}': value
                   for part in ('bbox', 'mask') for key, value in roi_layer.items()}
        # mmdet's cascade cannot predict for a batch that was flipped.
        cfg = tiny(request.param, options | {'train_dataloader.dataset.pipeline.prob': 0.})
        model, batch = one_batch(cfg)
        maps = [level.detach() for level in model.extract_feat(batch['inputs'])]
        return model, batch, maps

    def measure(model, batch: dict, maps: list[Tensor], memory_format) -> tuple:
        leaves = [level.clone(memory_format=memory_format).requires_grad_() for level in maps]
        model = copy.deepcopy(model)  # training changes its batch norms
        monkeypatch.setattr(model, 'extract_feat', lambda inputs: tuple(leaves))
        torch.manual_seed(0)
        total, losses = model.train().parse_losses(model(**batch, mode='loss'))
        total.backward()
        with torch.no_grad():
            found = model.eval()(**batch, mode='predict')
        return losses, [leaf.grad for leaf in leaves], [one.pred_instances for one in found]
    return build, measure


def test_channels_last_features_change_nothing(detector):
    build, measure = detector
    parts = build()
    losses, gradients, found = measure(*parts, torch.contiguous_format)
    others = measure(*parts, torch.channels_last)
    assert others[0].keys() == losses.keys() and len(losses) >= 6
    for name, value in losses.items():
        torch.testing.assert_close(others[0][name], value, rtol=1e-5, atol=1e-6)
    assert sum(gradient.any() for gradient in gradients) >= 3
    for ours, theirs in zip(gradients, others[1]):
        assert (theirs - ours).abs().max() <= 1e-3 * ours.abs().max()
    for ours, theirs in zip(found, others[2]):
        assert len(ours) > 5 and torch.equal(ours.labels, theirs.labels)
        torch.testing.assert_close(theirs.bboxes, ours.bboxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(theirs.scores, ours.scores, rtol=0, atol=1e-4)
        assert (ours.masks ^ theirs.masks).float().mean() < 1e-3


def test_a_kernel_that_misreads_memory_would_be_noticed(detector):
    build, measure = detector
    parts = build(use_torchvision=False)
    losses, *_ = measure(*parts, torch.contiguous_format)
    others, *_ = measure(*parts, torch.channels_last)
    assert abs(losses['loss'] - others['loss']) > 1e-4


# What a run leaves behind

@pytest.mark.parametrize('protocol', ['maskrcnn_coco_3x', 'upernet_ade20k'])
def test_the_dumped_config_runs_under_mmengines_own_runner(protocol, trained, tmp_path):
    work_dir = trained(protocol)
    cfg = Config.fromfile(next(work_dir.glob('*.py')))
    cfg.update(work_dir=str(tmp_path), load_from=checkpoint(work_dir))
    measured = Runner.from_cfg(cfg).test()
    expected = record(work_dir)['metrics']
    assert {name: float(value) for name, value in measured.items()} == expected


@pytest.mark.slow
@pytest.mark.parametrize('protocol, package', [('cascade_coco', 'mmdet'),
                                               ('upernet_ade20k', 'mmseg')])
def test_the_dumped_config_runs_under_their_own_tools(protocol, package, trained, tmp_path):
    work_dir = trained(protocol)
    script = Path(sys.modules[package].__file__).parent / '.mim/tools/test.py'
    done = subprocess.run(
        [sys.executable, '-m', 'suite.ops', str(script), str(next(work_dir.glob('*.py'))),
         checkpoint(work_dir), '--work-dir', str(tmp_path)],
        cwd=config.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written, = tmp_path.glob('*/*.json')
    measured = json.loads(written.read_text())
    expected = record(work_dir)['metrics']
    assert {name: measured[name] for name in expected} == pytest.approx(expected)
