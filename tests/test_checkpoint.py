"""Reading checkpoints: safely, by name, with a report."""
from __future__ import annotations

import argparse
import logging
import pickle
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from backbones import UserError, create
from backbones.checkpoint import find_weights, load_pretrained, load_report, read_checkpoint


class Executed:
    """Would write a file if it were unpickled by the book."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


class Config(dict):
    """An object such as official checkpoints carry: a class, with items and attributes."""

    def __init__(self, **items):
        super().__init__(items)
        self.depth = 3


class Net(nn.Module):
    """100 parameters, 99 of them in one tensor."""

    def __init__(self, big: int = 99):
        super().__init__()
        self.big = nn.Parameter(torch.zeros(big))
        self.small = nn.Parameter(torch.zeros(100 - big))
        self.register_buffer('table', torch.zeros(2))

    @staticmethod
    def convert(state, net):
        return state


def state(**changes) -> dict[str, torch.Tensor]:
    return {**dict(big=torch.ones(99), small=torch.ones(1), table=torch.ones(2)), **changes}


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'net.pth'


def test_report_counts_tensors_and_parameters(path, caplog):
    torch.save(state(), path)
    net = Net()
    with caplog.at_level(logging.INFO, 'backbones'):
        report = load_pretrained(net, path)
    assert report == f'loaded 3 of 3 tensors, 100.0% of the parameters, from {path}'
    assert caplog.messages == [report]
    assert all((tensor == 1).all() for tensor in net.state_dict().values())


def test_report_names_what_was_not_in_it():
    report = load_report(Net(), dict(big=torch.ones(99)), 'x.pth')
    assert report == ('loaded 1 of 3 tensors, 99.0% of the parameters, from x.pth; '
                      'not in it: small, table')


@pytest.mark.parametrize('big, enough', [(95, True), (94, False)])
def test_95_percent_are_enough(big, enough):
    net, weights = Net(big), dict(big=torch.ones(big))
    if enough:
        assert '95.0%' in load_report(net, weights, 'x.pth')
        assert net.big.sum() == 95
    else:
        with pytest.raises(UserError, match='94.0% of its parameters'):
            load_report(net, weights, 'x.pth')
        assert net.big.sum() == 0, 'nothing may be loaded'


def test_a_wrong_shape_does_not_count():
    with pytest.raises(UserError, match='1.0% .*missing big; unexpected big'):
        load_report(Net(), state(big=torch.ones(98)), 'x.pth')


def test_error_names_missing_and_unexpected():
    with pytest.raises(UserError) as error:
        load_report(Net(), dict(colour=torch.ones(1), small=torch.ones(1)), 'x.pth')
    assert str(error.value) == ('x.pth does not fit Net: 1.0% of its parameters found; '
                                'missing big, table; unexpected colour')


def test_parameters_that_we_added_do_not_count():
    net = Net(50)
    net.added = ('small',)
    assert '100.0% of the parameters' in load_report(net, dict(big=torch.ones(50)), 'x.pth')


@pytest.mark.parametrize('content', [b'', b'not a checkpoint', b'PK\x03\x04 half a zip'])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_corrupted_file(tmp_path, content, suffix):
    path = tmp_path / f'net{suffix}'
    path.write_bytes(content)
    with pytest.raises(UserError, match='corrupted or not a PyTorch checkpoint') as error:
        read_checkpoint(path)
    assert '\n' not in str(error.value) and str(path) in str(error.value)


def test_truncated_file(path):
    torch.save(state(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match='corrupted'):
        read_checkpoint(path)


def test_missing_file(path):
    with pytest.raises(UserError, match='checkpoint not found: .*net.pth'):
        read_checkpoint(path)
    with pytest.raises(UserError, match='checkpoint not found'):
        read_checkpoint(path.parent)


@pytest.mark.parametrize('content', [torch.ones(3), [1, 2], 'weights'])
def test_not_a_dict(path, content):
    torch.save(content, path)
    with pytest.raises(UserError, match=f'holds a {type(content).__name__}, not weights'):
        read_checkpoint(path)


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_foreign_objects_load(path, zipped):
    content = dict(model=state(), args=argparse.Namespace(lr=1e-3, sizes=[1, 2]))
    if zipped:  # the legacy format cannot be searched for classes: only this one is known
        content.update(best=np.float64(83.2), folder=PurePosixPath('runs/1'))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    weights, key = find_weights(read_checkpoint(path))
    assert key == 'model' and weights['big'].sum() == 99


def test_a_foreign_class_is_not_made(path):
    torch.save(dict(model=state(), config=Config(a=1)), path)
    content = read_checkpoint(path)
    assert find_weights(content)[0].keys() == state().keys()
    assert not isinstance(content['config'], Config) and content['config']['a'] == 1


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_nothing_is_executed(path, zipped):
    trap = path.parent / 'trap'
    torch.save(dict(model=state(), hook=Executed(trap)), path,
               _use_new_zipfile_serialization=zipped)
    try:
        weights, _ = find_weights(read_checkpoint(path))
    except UserError as error:  # a refusal is safe too, but only the legacy format may
        assert not zipped and 'corrupted or not a PyTorch checkpoint' in str(error)
    else:
        assert weights['big'].sum() == 99
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists(), 'the trap itself must work'


def test_a_bare_pickle_is_not_executed(path):
    trap = path.parent / 'trap'
    path.write_bytes(pickle.dumps(dict(model=Executed(trap))))
    with pytest.raises(UserError, match='corrupted or not'):
        read_checkpoint(path)
    assert not trap.exists()


@pytest.mark.parametrize('key', ['state_dict', 'model', 'model_ema', 'state_dict_ema'])
def test_containers(key):
    weights, found = find_weights({'epoch': 3, key: state()})
    assert found == key and weights.keys() == state().keys()


def test_chosen_entry(path):
    torch.save(dict(model=state(), model_ema=state(big=torch.full((99,), 2.))), path)
    net = Net()
    assert load_pretrained(net, path, key='model_ema').endswith(f'from {path} [model_ema]')
    assert net.big.sum() == 198
    with pytest.raises(UserError, match="no entry 'ema'; it has model, model_ema"):
        load_pretrained(net, path, key='ema')


@pytest.mark.parametrize('prefix', ['module.', 'backbone.', 'module.backbone.'])
def test_prefixes(prefix):
    weights = {prefix + name: tensor for name, tensor in state().items()}
    if 'backbone.' in prefix:
        weights['neck.conv'] = torch.ones(3)
    assert find_weights(weights)[0].keys() == state().keys()


def test_values_that_are_no_tensors_are_left_out():
    assert find_weights(dict(state_dict=state(), epoch=3))[0].keys() == state().keys()
    weights, found = find_weights(dict(state(), version=3))
    assert found == '' and weights.keys() == state().keys()


def test_a_whole_model_is_not_weights(path):
    torch.save(dict(model=Net()), path)
    with pytest.raises(UserError, match="no tensors under 'model'; save a state dict"):
        find_weights(read_checkpoint(path))


def test_safetensors(tmp_path):
    path = tmp_path / 'net.safetensors'
    save_file(state(), path)
    assert '100.0%' in load_pretrained(Net(), path)


def test_own_run(tmp_path):
    """What mmengine saves of a detector comes back into the backbone inside it."""
    source, target = create('resnet18'), create('resnet18')
    weights = {f'backbone.{name}': tensor for name, tensor in source.state_dict().items()}
    path = tmp_path / 'epoch_12.pth'
    torch.save(dict(meta=dict(epoch=12, experiment_name='x'), message_hub=dict(runtime_info={}),
                    state_dict={**weights, 'neck.conv.weight': torch.ones(3)},
                    optimizer=dict(state={}, param_groups=[])), path)
    again = create('resnet18', init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    again.init_weights()
    for net in (again, target):
        equal = [torch.equal(a, b) for a, b in
                 zip(net.state_dict().values(), source.state_dict().values())]
        assert all(equal) is (net is again)
