"""The flags of train.py: what they change in a config, and that the change does its work."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook

from backbones.errors import UserError
from suite import config, flags, run
from suite.averaging import AverageWeights

# Swin without anything random, or normalised over a batch; SGD, which does not blow up what
# is rounded.
EXACT = {
    'model.backbone.arch': dict(dim=12, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=4),
    'model.backbone.drop_path_rate': 0.,
    'model.decode_head.norm_cfg': dict(type='GN', num_groups=2),
    'model.decode_head.dropout_ratio': 0.,
    'model.auxiliary_head.norm_cfg': dict(type='GN', num_groups=2),
    'model.auxiliary_head.dropout_ratio': 0.,
    'optim_wrapper.optimizer': dict(type='SGD', lr=0.1),
    'param_scheduler': [],
    'train_dataloader.dataset.pipeline': [
        dict(type='LoadImage'), dict(type='LoadLabels'),
        dict(type='Resize', scale=(64, 64), keep_ratio=False), dict(type='PackSegInputs')],
}


@pytest.fixture
def exact(tiny):
    """``exact({option: value})``: a segmentor that computes the same however its batch is cut."""
    return lambda options=None: tiny('upernet_ade20k', EXACT | (options or {}),
                                     backbone='swin_tiny')


def record(work_dir: Path) -> dict:
    return json.loads((work_dir / 'record.json').read_text())


def last(work_dir: Path) -> dict:
    return torch.load((work_dir / 'last_checkpoint').read_text(), weights_only=False)


def difference(one: dict, other: dict) -> float:
    """The largest between two state dicts."""
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


class Watch(Hook):
    """Keeps the weights after every iteration."""

    priority = 'VERY_HIGH'

    def __init__(self):
        self.seen: list[dict] = []

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        self.seen.append({name: value.clone() for name, value in runner.model.state_dict().items()})


@pytest.fixture
def watch(monkeypatch) -> Watch:
    """A hook of every run of the test."""
    watch, build = Watch(), run.build_runner

    def watched(cfg: Config):
        runner = build(cfg)
        runner.register_hook(watch)
        return runner
    monkeypatch.setattr(run, 'build_runner', watched)
    return watch


# Through the command line

def test_all_flags_of_one_command(tool, trained, mini_root, tmp_path):
    """They enter the config that is dumped, hashed, printed, and trained again as it is."""
    plain, work_dir = trained('upernet_ade20k'), tmp_path / 'run'
    outcome = tool('train', plain / 'upernet_ade20k.py', '--data-root', mini_root, '--work-dir',
                   work_dir, '--amp', '--layer-decay', '0.7', '--ema', '0.01', '--accumulate', '2',
                   '--pretrained', plain / 'iter_2.pth', '--pretraining', 'ImageNet-1K')
    assert outcome.status == 0, outcome.err
    assert 'effective batch 4, learning rate 2.00e-03 (1.00e-03 for 2, scaled), bfloat16' in (
        outcome.out)
    assert 'layer decay 0.7, averaged weights (momentum 0.01), 2 batches a step\n' in outcome.out
    assert 'tensors, 100.0% of the parameters, from' in outcome.out
    told = record(work_dir)
    assert told['pretraining'] == 'ImageNet-1K' and told['precision'] == 'bfloat16 autocast'
    assert told['config_hash'] != record(plain)['config_hash']
    again = tool('train', work_dir / 'upernet_ade20k.py', '--work-dir', tmp_path / 'again')
    assert again.status == 0, again.err
    repeated = record(tmp_path / 'again')
    for key in ('config_hash', 'metrics', 'precision', 'effective_batch', 'pretraining'):
        assert repeated[key] == told[key], key


@pytest.mark.parametrize('arguments, line', [
    (['--layer-decay', '1.5'], '--layer-decay 1.5: must be greater than 0 and at most 1'),
    (['--ema', '1'], '--ema 1: must be greater than 0 and below 1'),
    (['--ema', '0'], '--ema 0: must be greater than 0 and below 1'),
    (['--accumulate', '0'], '--accumulate 0: one batch or more make a step'),
    (['--fsdp', '--ema'], '--fsdp and --ema exclude each other: no average of sharded weights is '
                          'kept; leave one of them out'),
    (['--compile', '--cfg-options', 'fsdp=True'], '--fsdp and --compile exclude each other: a '
                                                  'compiled backbone passes over the hooks'),
    (['--fsdp'], '--fsdp shards a model over several processes, and this is one; start them with '
                 'torchrun --nproc_per_node=N tools/train.py ...'),
    (['--pretrained', 'gone.pth'], '--pretrained: there is no file '),
    (['--pretraining', 'ImageNet-1K'], '--pretraining ImageNet-1K: no weights are loaded; name '
                                       'their file with --pretrained'),
])
def test_mistakes(tool, tmp_path, arguments, line):
    told = tool('train', 'swin/upernet_ade20k', '--mini', '--work-dir', tmp_path / 'run',
                *arguments).complaint()
    assert told.startswith(line)
    assert not (tmp_path / 'run').exists()


def test_layer_decay_needs_layers(tiny):
    cfg = tiny('maskrcnn_coco')
    cfg.model.backbone.type = 'mmdet.SSDVGG'
    with pytest.raises(UserError, match='mmdet.SSDVGG does not say how deep its parameters lie'):
        flags.apply(cfg, layer_decay=0.9)
    cfg.optim_wrapper.constructor = 'DefaultOptimWrapperConstructor'
    with pytest.raises(UserError, match='works with LayerDecay'):
        flags.apply(cfg, layer_decay=0.9)


def test_without_compiler(tiny, tmp_path, no_compiler):
    cfg = flags.apply(tiny('upernet_ade20k'), compile=True)
    with pytest.raises(UserError, match=r'--compile needs a C\+\+ compiler, and torch found none'):
        run.train(cfg, str(tmp_path))
    assert record(tmp_path)['status'] == 'failed' and not list(tmp_path.glob('*.pth'))


# Layer decay

@pytest.mark.parametrize('name, options', [
    ('convnext/upernet_ade20k', {}),  # has rates by stage, which the flag replaces
    ('swin/maskrcnn_coco', {})])
def test_layer_decay(name, options, tiny, monkeypatch):
    cfg = flags.apply(config.load(name), layer_decay=0.5)
    assert flags.describe(cfg) == 'layer decay 0.5'
    net = config.build_backbone(cfg.model.backbone)
    from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS

    task = torch.nn.Module()
    task.backbone = net
    wrapper = OPTIM_WRAPPER_CONSTRUCTORS.build(dict(
        type=cfg.optim_wrapper.constructor, optim_wrapper_cfg=dict(optimizer=dict(
            type='SGD', lr=1.)), paramwise_cfg=cfg.optim_wrapper.paramwise_cfg))(task)
    rates = {id(p): group['lr'] for group in wrapper.optimizer.param_groups
             for p in group['params']}
    found = {net.layer_id(name): rates[id(p)] for name, p in net.named_parameters()}
    depth = net.num_layers + 1
    assert found == {layer: 0.5 ** (depth - layer) for layer in range(depth + 1)}


# Accumulated gradients

def test_two_batches_of_two_are_one_of_four(exact, tmp_path):
    """Three steps each, which are six iterations against three."""
    unmeasured = dict(val_cfg=None, val_dataloader=None, val_evaluator=None)
    whole = exact({'train_dataloader.batch_size': 4, 'train_cfg.max_iters': 3} | unmeasured)
    run.train(whole, str(tmp_path / 'whole'))
    parts = exact({'train_cfg.max_iters': 6} | unmeasured)
    run.train(flags.apply(parts, accumulate=2), str(tmp_path / 'parts'))
    assert [record(tmp_path / name)['effective_batch'] for name in ('whole', 'parts')] == [4, 4]
    states = [last(tmp_path / name)['state_dict'] for name in ('whole', 'parts')]
    assert difference(*states) < 1e-6
    two = torch.load(tmp_path / 'whole/iter_2.pth', weights_only=False)['state_dict']
    assert difference(states[0], two) > 1e-3


# Averaged weights

def test_the_average_by_hand(tiny, watch, tmp_path):
    """Also between accumulated gradients, when nothing new is to be averaged."""
    cfg = tiny('upernet_ade20k', {'train_cfg.max_iters': 6, 'train_cfg.val_interval': 6,
                                  'default_hooks.checkpoint.interval': 6})
    measured = run.train(flags.apply(cfg, ema=0.85, accumulate=2), str(tmp_path))
    saved = last(tmp_path)
    after_steps = watch.seen[1::2]
    for name, value in saved['state_dict'].items():
        if value.is_floating_point():
            mean = after_steps[0][name]
            for share, newer in zip([10 / 11, 0.85], after_steps[1:], strict=True):
                mean = mean + share * (newer[name] - mean)
            assert torch.allclose(value, mean, atol=1e-6), name
        if f'module.{name}' in saved['ema_state_dict']:
            assert torch.equal(saved['ema_state_dict'][f'module.{name}'], watch.seen[-1][name])
    assert difference(saved['state_dict'], watch.seen[-1]) > 1e-4
    # What training measured last is what a test of its checkpoint, or of the best, measures.
    for file in (f'{tmp_path}/iter_6.pth', f'{tmp_path}/best.pth'):
        for tested in (tiny('upernet_ade20k'), flags.apply(tiny('upernet_ade20k'), ema=0.85)):
            assert run.test(tested, file, str(tmp_path / 'test')) == measured


def test_the_average_resumes(tiny, tmp_path):
    options = {'train_cfg.max_iters': 4, 'default_hooks.checkpoint.interval': 2}
    for folder, resume in (('whole', None), ('later', f'{tmp_path}/whole/iter_2.pth')):
        cfg = flags.apply(tiny('upernet_ade20k', options), ema=0.3)
        run.train(cfg, str(tmp_path / folder), resume=resume)
    whole, later = (last(tmp_path / folder) for folder in ('whole', 'later'))
    for part in ('state_dict', 'ema_state_dict'):
        assert difference(whole[part], later[part]) == 0, part
    assert record(tmp_path / 'whole')['metrics'] == record(tmp_path / 'later')['metrics']
    with pytest.raises(UserError, match='iter_4.pth was trained with --ema, and can only be resume'
                                        'd with it'):
        run.train(tiny('upernet_ade20k', options), str(tmp_path / 'whole'), resume='auto')


def test_no_average_to_resume(tiny, trained, tmp_path):
    with pytest.raises(UserError, match='without --ema, and can only be resumed without it'):
        run.train(flags.apply(tiny('upernet_ade20k'), ema=0.1), str(tmp_path / 'run'),
                  resume=(trained('upernet_ade20k') / 'last_checkpoint').read_text())


def test_the_average_starts_from_loaded_weights(tiny, trained, tmp_path):
    weights = last(trained('upernet_ade20k'))['state_dict']
    torch.save(weights, tmp_path / 'bare.pth')
    cfg = tiny('upernet_ade20k', {'load_from': str(tmp_path / 'bare.pth'),
                                  'optim_wrapper.optimizer.lr': 0.})
    run.train(flags.apply(cfg, ema=0.01), str(tmp_path / 'run'))
    ours = last(tmp_path / 'run')['state_dict']
    parameters = [name for name in ours if 'running' not in name and 'num_batches' not in name]
    assert all(torch.equal(ours[name], weights[name]) for name in parameters)


# Compiled

@pytest.mark.parametrize('backend, amp', [
    ('aot_eager', False), pytest.param('aot_eager', True, marks=pytest.mark.slow),
    pytest.param('inductor', False, marks=pytest.mark.slow)])
def test_compiled_backbone_trains_alike(exact, watch, tmp_path, backend, amp):
    """With what else a flag may ask for; aot_eager does all but write C++."""
    from torch._dynamo.utils import counters
    # Graphs of one test would serve another.
    torch.compiler.reset()
    counters.clear()
    for folder, compile in (('eager', False), ('compiled', True)):
        # One stage of one block: a compiler takes its time.
        cfg = flags.apply(exact({'model.backbone.out_indices': (0,)}), amp=amp, compile=compile,
                          ema=0.5, layer_decay=0.9)
        if compile:
            cfg.custom_hooks[-1].backend = backend
        run.train(cfg, str(tmp_path / folder))
        # One graph to train by, one to evaluate by, and nothing left out of them.
        assert counters['stats']['unique_graphs'] == (2 if compile else 0)
    assert not counters['graph_break']
    eager, compiled = watch.seen[:2], watch.seen[2:]
    for one, other in zip(eager, compiled, strict=True):
        assert difference(one, other) < (1e-3 if amp else 1e-5)
    metrics = [record(tmp_path / folder)['metrics'] for folder in ('eager', 'compiled')]
    assert metrics[0] == pytest.approx(metrics[1], abs=1 if amp else 0.1)
    assert last(tmp_path / 'compiled').keys() == last(tmp_path / 'eager').keys()


def test_hook_is_set_once(tiny):
    cfg = flags.apply(flags.apply(tiny('upernet_ade20k'), ema=0.1, compile=True), ema=0.2,
                      compile=True)
    kinds = [hook.type for hook in cfg.custom_hooks]
    assert kinds.count('AverageWeights') == kinds.count('CompileBackbone') == 1
    assert flags.describe(cfg) == 'averaged weights (momentum 0.2), compiled backbone'
    assert AverageWeights(momentum=0.2).ema_cfg['momentum'] == 0.2
