"""Two processes on a CPU: they train without an idle parameter, and measure what one
process measures; sharded or not, they learn the same."""
from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from backbones import create
from backbones.registry import smallest
from suite import config, flags, run
from suite.sharding import blocks, shard

TORCHRUN = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
LONG = {'train_cfg.max_iters': 4, 'default_hooks.checkpoint.interval': 2}


def together(tool: str, *arguments) -> subprocess.CompletedProcess:
    """Run a tool in two processes."""
    return subprocess.run(
        [*TORCHRUN, str(config.ROOT / f'tools/{tool}.py'), *map(str, arguments)],
        capture_output=True, text=True, timeout=500, env={**os.environ, 'OMP_NUM_THREADS': '1'})


def forked(action: Callable[[], object], processes: int = 2) -> list[int]:
    """Run ``action`` in copies of this process that torchrun might have started.

    Returns:
        Exit status of each: 0, or 1 after an exception, which is printed.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            signal.alarm(300)
            os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes),
                               MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port),
                               TORCHELASTIC_RUN_ID='test')
            status = 1
            try:
                action()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def record(work_dir: Path) -> dict:
    return json.loads((work_dir / 'record.json').read_text())


def checkpoint(work_dir: Path) -> Path:
    return Path((work_dir / 'last_checkpoint').read_text().strip())


def saved(path: Path) -> dict:
    return torch.load(path, weights_only=False)


def difference(one, other) -> float:
    """The largest between the tensors of two nests of dicts and lists."""
    if isinstance(one, torch.Tensor):
        assert type(one) is type(other) is torch.Tensor and one.shape == other.shape
        return (one.double() - other.double()).abs().max().item() if one.numel() else 0.
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return max((difference(one[key], other[key]) for key in one), default=0.)
    if isinstance(one, list | tuple):
        return max(map(difference, one, other), default=0.)
    assert one == other
    return 0.


@pytest.mark.slow
@pytest.mark.parametrize('protocol', ['cascade_coco', 'upernet_ade20k'])
def test_two_processes_train_and_evaluate(protocol, tiny, tmp_path):
    tiny(protocol).dump(tmp_path / 'tiny.py')
    work_dir = tmp_path / 'run'
    done = together('train', tmp_path / 'tiny.py', '--work-dir', work_dir)
    assert done.returncode == 0, done.stderr[-3000:]
    told = record(work_dir)
    assert (told['status'], told['world_size'], told['effective_batch']) == ('completed', 2, 4)
    assert done.stdout.count('2 processes') == 1
    # Four images are one step of two processes in an epoch; iterations stay two.
    state = saved(checkpoint(work_dir))
    assert state['meta']['iter'] == (2 if protocol.startswith('upernet') else 1)
    assert not [name for name in state['state_dict'] if name.startswith('module.')]
    # The stem's batch norms saw other images in either process.
    alone = run.test(tiny(protocol), str(checkpoint(work_dir)), str(tmp_path / 'alone'))
    assert alone == told['metrics']


@pytest.mark.slow
@pytest.mark.parametrize('protocol', ['maskrcnn_coco', 'upernet_ade20k'])
def test_two_processes_measure_what_one_measures(protocol, trained, tmp_path):
    work_dir = trained(protocol)
    done = together('test', next(work_dir.glob('*.py')), checkpoint(work_dir),
                    '--work-dir', tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert record(tmp_path)['world_size'] == 2
    assert record(tmp_path)['metrics'] == record(work_dir)['metrics']


@pytest.mark.slow
def test_a_mistake_ends_all_processes_with_its_line(tmp_path):
    done = together('train', 'swin/maskrcnn_coco', '--data-root', tmp_path / 'gone',
                    '--work-dir', tmp_path / 'run')
    assert done.returncode != 0
    assert 'error: data folder' in done.stderr and '--mini' in done.stderr


@pytest.mark.parametrize('fsdp', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_take_the_step_of_one(tiny, tmp_path, fsdp):
    """With the gradient limited to a norm that no process knows alone."""
    from test_flags import EXACT
    for folder, batch, processes in (('one', 4, 1), ('two', 2, 2)):
        cfg = tiny('upernet_ade20k', EXACT | {'train_dataloader.batch_size': batch,
                                              'optim_wrapper.clip_grad': dict(max_norm=0.1)},
                   backbone='swin_tiny')
        flags.apply(cfg, fsdp=fsdp)
        assert not any(forked(lambda c=cfg, f=folder: run.train(c, str(tmp_path / f)), processes))
        assert record(tmp_path / folder)['effective_batch'] == 4
    start, one = (saved(tmp_path / f'one/iter_{n}.pth')['state_dict'] for n in (1, 2))
    two = saved(tmp_path / 'two/iter_2.pth')['state_dict']
    step = sum((one[name] - start[name]).square().sum().item() for name in one) ** 0.5
    # The rate of 0.1 for 2 images is 0.2 for 4.
    assert step == pytest.approx(0.2 * 0.1, rel=1e-4) and difference(one, two) < 1e-6


@pytest.fixture(scope='module')
def sharded(mini_root, tmp_path_factory) -> Path:
    """Work dir of two sharded processes, and of two that are not, in ``plain``."""
    from conftest import load_tiny
    root = tmp_path_factory.mktemp('sharded')
    for folder, fsdp in ((root, True), (root / 'plain', False)):
        cfg = flags.apply(load_tiny(mini_root, 'upernet_ade20k', LONG), layer_decay=0.9, fsdp=fsdp)
        assert not any(forked(lambda c=cfg, f=folder: run.train(c, str(f))))
    return root


def test_shards_learn_what_wholes_learn(sharded):
    """Equal weights, equal moments of AdamW, in an ordinary checkpoint."""
    ours, plain = (saved(folder / 'iter_4.pth') for folder in (sharded, sharded / 'plain'))
    for part in ('state_dict', 'optimizer', 'param_schedulers'):
        assert difference(ours[part], plain[part]) < 1e-6, part
    assert ours['optimizer']['state'] and ours.keys() == plain.keys()
    first = saved(sharded / 'iter_2.pth')
    assert difference(first['state_dict'], ours['state_dict']) > 1e-4
    best = saved(sharded / 'best.pth')
    reached = saved(sharded / f'iter_{best["meta"]["iter"]}.pth')
    assert 'optimizer' not in best
    assert difference(best['state_dict'], reached['state_dict']) == 0
    assert record(sharded)['history'] == record(sharded / 'plain')['history']


def test_one_process_measures_what_shards_measured(sharded, tiny, tmp_path):
    assert run.test(tiny('upernet_ade20k'), str(sharded / 'iter_4.pth'),
                    str(tmp_path / 'test')) == record(sharded)['metrics']


@pytest.mark.slow
@pytest.mark.parametrize('start', ['.', 'plain'])
def test_a_sharded_run_resumes(sharded, tiny, tmp_path, start):
    """From its own checkpoint, and from one of whole processes."""
    cfg = flags.apply(tiny('upernet_ade20k', LONG), layer_decay=0.9, fsdp=True)
    assert not any(forked(lambda: run.train(cfg, str(tmp_path),
                                            str(sharded / start / 'iter_2.pth'))))
    whole, later = saved(sharded / 'iter_4.pth'), saved(tmp_path / 'iter_4.pth')
    for part in ('state_dict', 'optimizer'):
        assert difference(whole[part], later[part]) < 1e-6, part


@pytest.mark.slow
def test_one_process_goes_on_from_shards(sharded, tiny, tmp_path):
    cfg = flags.apply(tiny('upernet_ade20k', LONG), layer_decay=0.9)
    run.train(cfg, str(tmp_path), resume=str(sharded / 'iter_2.pth'))
    assert saved(checkpoint(tmp_path))['meta']['iter'] == 4
    assert [entry['iteration'] for entry in record(tmp_path)['history']] == [2, 4]


@pytest.mark.slow
def test_each_process_holds_its_share(sharded, tiny, tmp_path):
    """Of parameters and of both moments, also where these come from a whole checkpoint."""
    def held() -> None:
        runners, build = [], run.build_runner
        run.build_runner = lambda cfg: runners.append(build(cfg)) or runners[-1]
        run.train(flags.apply(tiny('upernet_ade20k', LONG), layer_decay=0.9, fsdp=True),
                  str(tmp_path), resume=str(sharded / 'iter_2.pth'))
        optimizer = runners[0].optim_wrapper.optimizer
        tensors = [tensor for parameter in optimizer.state
                   for tensor in (parameter, *optimizer.state[parameter].values())
                   if tensor.dim()]
        assert len(tensors) > 300 and all(isinstance(tensor, DTensor) for tensor in tensors)
        held = sum(t.to_local().untyped_storage().nbytes() for t in tensors)
        assert 0.45 < held / sum(4 * t.numel() for t in tensors) < 0.55
    assert forked(held) == [0, 0]


@pytest.mark.slow
def test_a_lost_loss_ends_sharded_processes_with_its_place(tiny, tmp_path, capfd):
    """Though only the second process lost it, and all must take part in the search."""
    def lost() -> None:
        cfg = flags.apply(tiny('upernet_ade20k'), fsdp=True)
        build = run.build_runner

        def spoiled(cfg):
            runner = build(cfg)
            if os.environ['RANK'] == '1':
                runner.model.decode_head.conv_seg.register_forward_hook(
                    lambda module, inputs, output: output * float('nan'))
            return runner
        run.build_runner = spoiled
        run.train(cfg, str(tmp_path))
    assert forked(lost) == [1, 1]
    line = 'the loss became nan at iteration 1; first in module decode_head.conv_seg; none saved'
    assert capfd.readouterr().err.count(f'NonFiniteLoss: {line}') == 2
    assert line in record(tmp_path)['error']


class Task(nn.Module):
    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.backbone(x)


def test_blocks():
    """Large enough to be worth a message each; none inside of another."""
    found = list(blocks(create('swin_tiny')))
    assert [type(block).__name__ for block in found].count('Block') == 12
    assert len(found) == 15
    inner = {id(module) for block in found for module in list(block.modules())[1:]}
    assert not inner & set(map(id, found))


@pytest.mark.slow
@pytest.mark.parametrize('name', [*sorted(smallest()), 'timm/convnext_atto', 'timm/test_vit'])
def test_every_backbone_shards(name):
    """All its blocks compute when they are called, none through another's hands."""
    def compare() -> None:
        torch.distributed.init_process_group('gloo')
        gradients = []
        for sharding in (False, True):
            torch.manual_seed(0)
            task = Task(create(name))
            if sharding:
                assert list(blocks(task.backbone))
                shard(task)
            torch.manual_seed(1)
            sum(y.square().sum() for y in task(torch.randn(2, 3, 64, 96))).backward()
            gradients.append({key: p.grad.full_tensor() if sharding else p.grad
                              for key, p in task.backbone.named_parameters()})
        largest = max(value.abs().max().item() for value in gradients[0].values())
        assert 0 < largest and difference(*gradients) < 1e-5 * largest
    assert forked(compare, 1) == [0]
