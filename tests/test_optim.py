"""Parameter groups, learning rates that follow the batch, and precision."""
from __future__ import annotations

import json

import pytest
import torch
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

import suite.components  # noqa: F401
from backbones import create
from backbones.errors import UserError
from suite import run
from suite.optim import GuardedOptimWrapper, LayerDecay, NonFiniteLoss


class Task(nn.Module):
    """A backbone and what stands behind it."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))


def grouped(name: str, **paramwise) -> dict[str, tuple[float, float]]:
    """Parameter name -> its learning rate and weight decay."""
    task = Task(create(name))
    wrapper = LayerDecay(dict(type='GuardedOptimWrapper',
                              optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05)),
                         paramwise)(task)
    names = {parameter: name for name, parameter in task.named_parameters()}
    found = {names[parameter]: (group['lr'], group['weight_decay'])
             for group in wrapper.optimizer.param_groups for parameter in group['params']}
    assert len(found) == len(names) == sum(len(group['params'])
                                           for group in wrapper.optimizer.param_groups)
    return found


@pytest.mark.parametrize('name, layers, depths', [
    ('resnet18', 8, {'conv1.weight': 0, 'layer1.0.conv1.weight': 1, 'layer2.1.conv2.weight': 4,
                     'layer4.1.conv2.weight': 8}),
    ('swin_tiny', 12, {'patch_embed.proj.weight': 0, 'layers.1.blocks.1.attn.qkv.weight': 4,
                       'layers.2.blocks.3.mlp.fc1.weight': 8,
                       'layers.3.blocks.1.mlp.fc2.weight': 12, 'norm3.weight': 13}),
])
def test_layer_decay(name, layers, depths):
    rates = {key: lr for key, (lr, _) in grouped(name, layer_decay=0.8).items()}
    for key, depth in depths.items():
        assert rates[f'backbone.{key}'] == pytest.approx(1e-3 * 0.8 ** (layers + 1 - depth)), key
    assert rates['neck.0.weight'] == rates['neck.1.weight'] == 1e-3
    assert min(rates.values()) == pytest.approx(1e-3 * 0.8 ** (layers + 1))


def test_rates_by_stage():
    """ConvNeXt's segmentation runs: all downsampling learns as the stem does."""
    rates = {key: lr for key, (lr, _) in grouped(
        'hornet_tiny_7x7', stage_rates=[0.1, 0.2, 0.4, 0.6, 0.8]).items()}
    expected = {'downsample_layers.0.0.weight': 0.1, 'downsample_layers.3.1.weight': 0.1,
                'stages.0.0.gamma1': 0.2, 'stages.2.17.norm1.weight': 0.6,
                'stages.3.1.pwconv1.weight': 0.8, 'norm0.weight': 1, 'norm3.bias': 1}
    assert {key: rates[f'backbone.{key}'] / 1e-3 for key in expected} == pytest.approx(expected)
    assert rates['neck.0.weight'] == 1e-3
    with pytest.raises(UserError, match='exclude each other'):
        grouped('resnet18', layer_decay=0.9, stage_rates=[1])


def test_layer_decay_off():
    assert {lr for lr, _ in grouped('resnet18').values()} == {1e-3}


@pytest.mark.parametrize('paramwise, decayed', [
    (dict(), {'weight', 'bias'}),
    (dict(bias_decay=False), {'weight'}),
    (dict(norm_decay=True), {'weight', 'bias', 'norm', 'table'}),
    (dict(norm_decay=True, bias_decay=False), {'weight', 'norm', 'table'}),
])
def test_weight_decay(paramwise, decayed):
    groups = grouped('swin_tiny', **paramwise)
    block = 'backbone.layers.0.blocks.0'
    kinds = {'weight': (f'{block}.attn.qkv.weight', 'neck.0.weight'),
             'bias': (f'{block}.attn.qkv.bias', 'neck.0.bias'),
             'norm': (f'{block}.norm1.weight', f'{block}.norm1.bias', 'neck.1.weight',
                      'backbone.norm0.bias')}
    kinds['table'] = tuple(f'backbone.{name}' for name in create('swin_tiny').no_weight_decay())
    assert kinds['table']
    for kind, names in kinds.items():
        for name in names:
            assert groups[name][1] == (0.05 if kind in decayed else 0.), (kind, name)


def test_frozen_parameters_stay_out():
    task = Task(create('resnet18', frozen_stages=1))
    wrapper = LayerDecay(dict(optimizer=dict(type='SGD', lr=0.1)))(task)
    inside = {id(p) for group in wrapper.optimizer.param_groups for p in group['params']}
    assert inside == {id(p) for p in task.parameters() if p.requires_grad}
    assert id(task.backbone.conv1.weight) not in inside


def test_unknown_paramwise_setting():
    with pytest.raises(UserError, match='no paramwise setting decay_rate; it has layer_decay'):
        LayerDecay(dict(optimizer=dict(type='SGD', lr=0.1)), dict(decay_rate=0.8))


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_lost_loss_changes_no_weight(bad):
    weight = nn.Parameter(torch.ones(2))
    wrapper = OPTIM_WRAPPERS.build(dict(type='GuardedOptimWrapper',
                                        optimizer=torch.optim.SGD([weight], lr=0.1)))
    with pytest.raises(NonFiniteLoss, match=f'the loss became {bad}'):
        wrapper.update_params((weight * bad).sum())
    assert weight.tolist() == [1, 1]
    wrapper.update_params(weight.sum())
    assert weight.tolist() == pytest.approx([0.9, 0.9])


@pytest.mark.parametrize('batch, accumulated, factor', [(2, 1, 1), (4, 1, 2), (2, 4, 4)])
def test_rate_follows_the_batch(tiny, tmp_path, monkeypatch, batch, accumulated, factor):
    """2 images are the base; also where a dumped config is trained again."""
    seen = []
    monkeypatch.setattr(run, '_run', lambda runner, *rest, **known: seen.append((runner, known)))
    cfg = tiny('maskrcnn_coco', {'train_dataloader.batch_size': batch,
                                 'optim_wrapper.optimizer.lr': 3e-4,
                                 'optim_wrapper.accumulative_counts': accumulated})
    for folder in ('first', 'again'):
        run.train(cfg, str(tmp_path / folder))
        runner, known = seen.pop()
        wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.scale_lr(wrapper, runner.auto_scale_lr)
        lr = max(group['lr'] for group in wrapper.optimizer.param_groups)
        assert lr == pytest.approx(3e-4 * factor)
        assert known['effective_batch'] == batch * accumulated
        assert f'effective batch {batch * accumulated}, learning rate {lr:.2e}' in run.scaling(cfg)
        cfg = type(cfg).fromfile(tmp_path / folder / 'maskrcnn_coco.py')


def test_rate_without_scaling(tiny):
    cfg = tiny('maskrcnn_coco', {'auto_scale_lr.enable': False, 'train_dataloader.batch_size': 4,
                                 'optim_wrapper.optimizer.lr': 3e-4})
    assert run.scaling(cfg) == 'effective batch 4, learning rate 3.00e-04 (not scaled)'


def test_accumulated_steps_train(tiny, tmp_path):
    """Two batches of two make one step of four."""
    steps = []

    class Counting(torch.optim.SGD):
        def step(self, *arguments, **options):
            steps.append(len(steps))
            return super().step(*arguments, **options)
    weight = nn.Parameter(torch.ones(1))
    wrapper = GuardedOptimWrapper(optimizer=Counting([weight], lr=0.5), accumulative_counts=2)
    wrapper.initialize_count_status(nn.Linear(1, 1), 0, 4)
    for factor in (1., 3., 1., 1.):
        wrapper.update_params((weight * factor).sum())
    assert steps == [0, 1] and weight.item() == pytest.approx(1 - 0.5 * 2 - 0.5 * 1)


def test_bfloat16_only_inside(tiny):
    layer = nn.Linear(4, 4)
    wrapper = GuardedOptimWrapper(bfloat16=True, optimizer=torch.optim.SGD(layer.parameters(), 0.1))
    with wrapper.optim_context(layer):
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
    assert layer(torch.ones(1, 4)).dtype == torch.float32


@pytest.mark.parametrize('protocol', ['maskrcnn_coco', 'upernet_ade20k'])
def test_amp_and_tensorboard(tool, trained, mini_root, tmp_path, protocol):
    outcome = tool('train', trained(protocol) / f'{protocol}.py', '--amp', '--tensorboard',
                   '--data-root', mini_root, '--work-dir', tmp_path)
    assert outcome.status == 0, outcome.err
    record = json.loads((tmp_path / 'record.json').read_text())
    plain = json.loads((trained(protocol) / 'record.json').read_text())
    assert record['precision'] == 'bfloat16 autocast' and plain['precision'] == 'float32'
    assert record['status'] == 'completed' and record['metrics'].keys() == plain['metrics'].keys()
    assert record['config_hash'] != plain['config_hash']
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(next(tmp_path.glob('**/events.out.tfevents*')).parent)).Reload()
    losses = [event.value for event in events.Scalars('loss')]
    # The log of another precision: near, but not the same.
    log = next(trained(protocol).glob('*/vis_data/scalars.json'))
    exact = [line['loss'] for line in map(json.loads, log.read_text().splitlines())
             if 'loss' in line]
    assert len(losses) == 2 and losses == pytest.approx(exact, rel=0.1) and losses != exact
    assert len(events.Scalars(next(iter(plain['metrics'])))) == 1


def test_sync_bn_alone(tiny):
    """One process needs no synchronised statistics: BatchNorm takes over by itself."""
    from suite.run import BenchRunner
    cfg = tiny('upernet_ade20k')
    assert cfg.model.decode_head.norm_cfg.type == 'SyncBN'
    cfg.work_dir = '/tmp'
    kinds = {type(module) for module in BenchRunner.from_cfg(cfg).model.modules()}
    assert nn.BatchNorm2d in kinds and nn.SyncBatchNorm not in kinds
