"""Modes are what they say, work and roofs as by hand, results written as they were found."""
from __future__ import annotations

import csv
import json
from collections import Counter

import pytest
import torch
from torch import nn

import backbones
from backbones.errors import UserError
from suite import latency, roofline, speed_report, train_step
from suite.latency import Case, Result, System, Task, both, forward, of_backbones, timed
from suite.modes import EAGER, Mode
from suite.speed import Timing, peak_bytes

# EdgeNeXt of 0.2 M parameters: convolutions and attention, as small as it goes.
SMALL = 'edgenext_xx_small'
PEAKS = {'float32': 100., 'bfloat16': 200., roofline.BANDWIDTH: 10.}


@pytest.fixture(autouse=True)
def small_meters(monkeypatch):
    monkeypatch.setattr(roofline, 'SIDE', dict(cpu=16))
    monkeypatch.setattr(roofline, 'LENGTH', dict(cpu=64))


class Spy(nn.Module):
    """One convolution that notes how it is called."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.seen = []

    def forward(self, x):
        y = self.conv(x)
        self.seen.append((self.training, torch.is_grad_enabled(), y.dtype,
                          x.is_contiguous(memory_format=torch.channels_last)))
        return (y,)


# Passes and modes


def test_both_passes_run_in_their_modes(monkeypatch):
    nets = {}

    def create(name, **options):
        nets[name] = Spy()
        return nets[name]

    monkeypatch.setattr(backbones, 'create', create)
    monkeypatch.setattr(latency, 'copy', type('', (), dict(deepcopy=lambda net: net)))
    tasks = list(of_backbones([System('a'), System('b')], [EAGER], (1, 3, 40, 40), 'cpu', 3))
    assert [task.name for task in tasks] == ['forward', 'forward+backward']
    for net in nets.values():
        assert {seen[:2] for seen in net.seen} == {(False, False), (True, True)}
    for task in tasks:
        assert [result.case.system.name for result in task.results] == ['a', 'b']
        for result in task.results:
            assert 0 < result.timing.p10 <= result.timing.median <= result.timing.p90
            assert result.memory >= 2 * 40 * 40 * 4
            assert result.images_per_second == 1 / result.timing.median


def test_backward_reaches_every_parameter_and_leaves_no_gradient():
    net, reached = Spy(), []
    for parameter in net.parameters():
        parameter.register_hook(lambda grad: reached.append(grad.abs().sum().item()))
    both(net, torch.randn(2, 3, 5, 5))
    assert len(reached) == 2 and min(reached) > 0
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize('text, dtype, channels_last', [
    ('eager', torch.float32, False), ('channels-last', torch.float32, True),
    ('bfloat16', torch.bfloat16, False), ('bfloat16+channels-last', torch.bfloat16, True)])
def test_a_mode_is_what_it_says(text, dtype, channels_last):
    net, mode = Spy(), Mode.parse(text)
    mode.prepare(net)
    # One channel or row too few, and both layouts are one.
    x = torch.randn(1, 3, 4, 5)
    forward(net, x, mode)
    both(net, x, mode)
    assert {seen[2:] for seen in net.seen} == {(dtype, channels_last)}
    assert net.conv.weight.dtype == torch.float32
    assert Mode.parse(str(mode)) == mode
    assert mode.precision == ('bfloat16 autocast' if 'bfloat16' in text else 'float32')


def test_modes_join_in_any_order():
    assert Mode.parse('bfloat16+compile') == Mode.parse('compile+bfloat16') == Mode(
        compiled=True, bfloat16=True)
    for text in ('eager+compile', '', 'compile,bfloat16'):
        with pytest.raises(UserError, match='no mode'):
            Mode.parse(text)


def test_a_compiled_network_keeps_its_names():
    net, mode = Spy(), Mode(compiled=True)
    names = list(net.state_dict())
    assert net._compiled_call_impl is None
    mode.prepare(net)
    assert net._compiled_call_impl is not None and list(net.state_dict()) == names


def difference(text: str) -> float:
    """Of the maps in a mode, in standard deviations."""
    torch.manual_seed(0)
    net = backbones.create(SMALL).eval()
    x = torch.randn(1, 3, 64, 96)
    reference = forward(net, x)
    mode = Mode.parse(text)
    mode.prepare(net)
    maps = forward(net, x, mode)
    assert [y.shape for y in maps] == [y.shape for y in reference]
    return max(((y.float() - r).std() / r.std()).item() for y, r in zip(maps, reference))


def test_modes_give_the_same_maps():
    assert difference('channels-last') < 1e-5
    assert 1e-5 < difference('bfloat16') < 0.1


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_maps():
    frames = torch._dynamo.utils.counters['frames']['ok']
    assert difference('compile') < 1e-4
    assert torch._dynamo.utils.counters['frames']['ok'] > frames


# Memory


def test_memory_on_a_gpu_is_what_a_call_adds(monkeypatch):
    """By fakes: there is no GPU where this runs."""
    calls = []
    for name, value in dict(synchronize=None, reset_peak_memory_stats=None,
                            memory_allocated=100, max_memory_allocated=170).items():
        monkeypatch.setattr(torch.cuda, name,
                            lambda name=name, value=value: calls.append(name) or value)
    assert peak_bytes(lambda: calls.append('call'), 'cuda') == 70
    at = [calls.index(name) for name in ('reset_peak_memory_stats', 'memory_allocated', 'call')]
    assert at == sorted(at) and calls[calls.index('call') + 1] == 'synchronize'


# Roofline


class Toy(nn.Module):
    """64 MACs and 8 numbers out per pixel; 67 weights."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.ReLU(),
                                    nn.Conv2d(5, 8, 1, bias=False))
        self.scale = nn.Parameter(torch.ones(12))

    def forward(self, x):
        return self.layers(x) + self.scale[0]


def test_work_is_counted_by_hand():
    with torch.device('meta'):
        net = Toy().eval()
    work = roofline.work(net, (4, 6))
    # Outputs of three leaf modules; the sum outside of them is not one.
    assert work == (24 * (15 + 40), 15 + 40 + 12, 24 * (3 + 5 + 5 + 8))
    assert work.flops(2) == 2 * 2 * work.macs
    assert work.intensity(1, torch.float32) == 2 * work.macs / (4 * (67 + 504))
    assert work.intensity(3, torch.bfloat16) == 6 * work.macs / (2 * (67 + 3 * 504))
    assert not any(module._forward_hooks for module in net.modules())


def test_a_refused_size_has_no_work():
    with torch.device('meta'):
        net = Toy().eval()
    net.size = 32, 32
    assert roofline.work(net, (4, 6)) is None


def test_shares_under_a_flat_and_under_a_slanted_roof():
    dense = roofline.shares(600., 50., 12., PEAKS, torch.float32)
    assert dense == (50., 0.5, 0.5)
    sparse = roofline.shares(600., 5., 24., PEAKS, torch.bfloat16)  # 10 x 5 = 50 attainable
    assert sparse == (25., 0.125, 0.5)


def test_meters_count_what_they_do():
    found = roofline.meters('cpu', [torch.float32, torch.bfloat16, torch.float32], 4, 10)
    assert {name: meter.amount for name, meter in found.items()} == {
        'float32': 128, 'bfloat16': 128, roofline.BANDWIDTH: 120}
    for meter in found.values():
        meter.call()


@pytest.mark.parametrize('device, allowed, during', [
    ('cuda', True, 'high'), ('cuda', False, 'highest'), ('cpu', True, 'highest')])
def test_products_are_as_convolutions_are(monkeypatch, device, allowed, during):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', allowed)
    with roofline._as_convolutions(device):
        assert torch.get_float32_matmul_precision() == during
    assert torch.get_float32_matmul_precision() == 'highest'


def test_a_case_is_timed_beside_the_peaks_of_its_precision(monkeypatch):
    """Every clock reading is fake: a product takes 1 s, the triad 2, the case 4."""
    monkeypatch.setattr(latency, 'measure', lambda calls, repeats, warmup, what: [
        Timing(seconds, seconds, seconds) for seconds in (1., 2., 4.)[:len(calls)]])
    work = roofline.Work(macs=1024, weights=0, maps=1024)
    case = Case(System('a'), Mode(bfloat16=True), (2, 3, 8, 8), lambda: None, work, times=3)
    task = timed('forward+backward', [case], 'cpu', 5)
    assert task.rates == {'bfloat16': 2. * 16 ** 3, roofline.BANDWIDTH: 3 * 4 * 64 / 2}
    # 3 passes of 2 images of 2048 operations in 4 s; 1 operation a byte, 384 bytes a second.
    assert task.results[0].shares == (3072., 3072 / 8192, 3072 / 384)


# Train step


@pytest.fixture
def batch_of(tiny):
    def load(protocol: str, **options):
        cfg = tiny(protocol, options)
        return cfg, train_step.first_batch(cfg)
    return load


def weights(case: Case) -> dict[str, torch.Tensor]:
    model = next(cell.cell_contents for cell in case.call.__closure__
                 if isinstance(cell.cell_contents, nn.Module))
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_a_train_step_changes_the_weights_and_not_the_batch(batch_of):
    cfg, batch = batch_of('maskrcnn_coco')
    images = [image.clone() for image in batch['inputs']]
    case = train_step.step(System('dilateformer_tiny'), cfg, batch, EAGER, 'cpu')
    before = weights(case)
    case.call()
    after = weights(case)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) > 0.9 * len(before)
    assert {'backbone', 'neck', 'rpn_head', 'roi_head'} == {
        name.partition('.')[0] for name in changed}
    assert all(torch.equal(a, b) for a, b in zip(images, batch['inputs']))
    assert case.shape[:2] == (2, 3) and case.repeated == 1
    assert (case.protocol, case.mini, case.work) == ('maskrcnn_coco', True, None)


def test_a_train_step_runs_in_its_mode(batch_of):
    cfg, batch = batch_of('upernet_ade20k', **{'optim_wrapper.accumulative_counts': 3})
    seen = Counter()

    def look(module, inputs, output):
        seen[module.training, output.dtype,
             inputs[0].is_contiguous(memory_format=torch.channels_last)] += 1

    case = train_step.step(System('dilateformer_tiny'), cfg, batch,
                           Mode.parse('channels-last+bfloat16'), 'cpu')
    model = next(cell.cell_contents for cell in case.call.__closure__
                 if isinstance(cell.cell_contents, nn.Module))
    next(module for module in model.backbone.modules()
         if isinstance(module, nn.Conv2d)).register_forward_hook(look)
    before = weights(case)
    case.call()
    assert seen == {(True, torch.bfloat16, True): 3}
    assert any(not torch.equal(value, before[name]) for name, value in weights(case).items())
    result = Result(case, Timing(2., 1., 3.), 0, None)
    assert result.images_per_second == 3 * 2 / 2
    assert 'bfloat16' not in cfg.optim_wrapper


def test_the_first_batch_is_the_same_for_everyone(batch_of):
    (_, one), (_, other) = batch_of('upernet_ade20k'), batch_of('upernet_ade20k')
    assert all(torch.equal(a, b) for a, b in zip(one['inputs'], other['inputs']))


def test_steps_take_the_backbones_options(mini_root):
    case, = train_step.steps([System(SMALL, dict(drop_path_rate=0.))], [EAGER],
                             'upernet_ade20k', 'cpu', mini=True, data_root=str(mini_root))
    assert case.shape[0] == 8 and case.system.name == SMALL
    with pytest.raises(UserError, match="no config 'upernet_ade'"):
        list(train_step.steps([System(SMALL)], [EAGER], 'upernet_ade', 'cpu'))


# What is written


def task_of(*seconds: float, work=None, modes=(EAGER,)) -> Task:
    systems = System('ours'), System('theirs', dict(img_size=64))
    cases = [Case(system, mode, (2, 3, 64, 96), lambda: None, work) for system in systems
             for mode in modes]
    shares = roofline.Shares(1e9, .5, .75) if work else None
    return Task('forward', [Result(case, Timing(s, s / 2, 2 * s), round(s * 2 ** 20), shares)
                            for case, s in zip(cases, seconds)], PEAKS if work else {})


def test_the_ratio_is_of_the_other_one_over_ours():
    lines = list(speed_report.table(task_of(1., .5, 4., 1., modes=(EAGER, Mode(bfloat16=True))), 2))
    assert lines[-2].strip() == 'ratio, eager: 4.00 in time, 4.00 in memory'
    assert lines[-1].strip() == 'ratio, bfloat16: 2.00 in time, 2.00 in memory'
    faster = [line.split()[-1] for line in lines[2:6]]
    assert faster == ['1.00', '2.00', '1.00', '4.00']
    assert lines[2].split()[:5] == ['ours', 'eager', '1000.0', '(500.0-2000.0)', '2.00']
    assert max(map(len, lines)) <= 100


def test_a_table_tells_the_roof():
    work = roofline.Work(5, 6, 7)
    head, names, first, _, _ = speed_report.table(task_of(1., 2., work=work), 1)
    assert head == ('forward of 2x3x64x96 (product in float32 100 FLOP/s, product in bfloat16 '
                    '200 FLOP/s, stream triad 10 B/s)')
    assert names.split()[-3:] == ['of', 'peak', 'attainable'] and first.endswith('75%')
    assert [speed_report.quantity(value, 'B/s') for value in (2.345e10, 999., 7.9e14, 1e6)] == [
        '23.4 GB/s', '999 B/s', '790 TB/s', '1 MB/s']


def test_the_tool_measures_and_writes(tool, tmp_path):
    done = tool('speed', SMALL, '--options', 'drop_path_rate=0.5', '--modes', 'eager',
                'channels-last+bfloat16', '--size', 32, 64, '--batch', 2, '--repeats', 1,
                '--csv', tmp_path / 'a.csv', '--record', tmp_path / 'a.json')
    assert not done.status, done.err
    assert 'forward of 2x3x32x64 (' in done.out and 'forward+backward of 2x3x32x64 (' in done.out
    record = json.loads((tmp_path / 'a.json').read_text())
    assert (record['version'], record['kind'], record['repeats'], record['threads']) == (
        1, 'speed', 1, 1)
    assert {'command', 'started', 'commit', 'device', 'versions', 'loadavg', 'meaning'} <= {*record}
    assert len(record['loadavg']) == 2 and record['versions']['torch']
    assert list(record['peaks']) == ['forward', 'forward+backward']
    assert {*record['peaks']['forward']} == {'float32', 'bfloat16', 'bandwidth'}
    with open(tmp_path / 'a.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(record['results']) == 2 * 2
    for row, result in zip(rows, record['results']):
        assert all(row[key] == ('' if value is None else str(value))
                   for key, value in result.items())
        assert row['device'] == record['device'] and row['commit'] == record['commit']
        assert result['p10_seconds'] <= result['p50_seconds'] <= result['p90_seconds']
        assert result['images_per_second'] == pytest.approx(2 / result['p50_seconds'], rel=1e-4)
        assert result['flops_per_second'] == pytest.approx(
            result['flops'] / result['p50_seconds'], rel=1e-4)
        peak = record['peaks'][result['task']][result['precision'].split()[0]]
        assert result['share_of_peak'] == pytest.approx(result['flops_per_second'] / peak, rel=1e-4)
    once, thrice = record['results'][0], record['results'][2]
    assert thrice['flops'] == 3 * once['flops'] and thrice['memory_mib'] > once['memory_mib']
    assert [row['mode'] for row in rows] == 2 * ['eager', 'channels-last+bfloat16']
    assert {row['options'] for row in rows} == {'drop_path_rate=0.5'}


@pytest.mark.parametrize('arguments, words', [
    ([SMALL, '--modes', 'compiled'], "no mode 'compiled'; did you mean compile"),
    ([SMALL, '--size', '16', '64'], 'size 16 x 64: backbones take sides of 32 pixels'),
    ([SMALL, '--batch', '0'], '--batch must be 1 or more, got 0'),
    ([SMALL, '--repeats', '0'], '--repeats must be 1 or more, got 0'),
    ([SMALL, '--threads', '-1'], '--threads must be 1 or more, got -1'),
    ([SMALL, '--csv', '/nowhere/a.csv'], '--csv: /nowhere/a.csv cannot be written'),
    ([SMALL, '--record', '/'], '--record: / cannot be written (it is a folder)'),
    ([SMALL, '--options', 'arch=huge'], "EdgeNeXt has no arch 'huge'"),
    (['edgenext_xx_smal'], "unknown backbone 'edgenext_xx_smal'; did you mean edgenext_xx_small"),
    (['resnet18', '--size', '32', '32', '--repeats', '1'],
     'forward+backward of resnet18 (eager) on 1x3x32x32: Expected more than 1 value per channel'),
    (['spach_ms_mlp_xxs', '--size', '64', '96'], 'spach_ms_mlp_xxs takes images of 224 x 224')])
def test_a_mistake_is_one_line(tool, arguments, words):
    assert words in tool('speed', *arguments).complaint()


def test_no_gpu_and_no_compiler_are_one_line(tool, monkeypatch, no_compiler):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert 'torch finds no GPU here' in tool('speed', SMALL, '--device', 'cuda').complaint()
    line = tool('speed', SMALL, '--modes', 'eager', 'compile+bfloat16').complaint()
    assert line.startswith('--modes compile needs a C++ compiler')


@pytest.mark.parametrize('error, words', [
    (torch._dynamo.exc.TorchDynamoException('graph\nmore'),
     'forward of a cannot be compiled: graph'),
    (torch.OutOfMemoryError('CUDA out of memory.\nmore'), 'forward of a: CUDA out of memory.'),
    (AssertionError(), 'forward of a: AssertionError'), (UserError('as it is'), 'as it is')])
def test_what_a_network_raises_is_one_line(error, words):
    with pytest.raises(UserError) as caught, latency._told('forward of a'):
        raise error
    assert str(caught.value) == words
