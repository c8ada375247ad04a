"""The contract of ``backbones/base.py``, kept by every system alike.

By default the smallest variant of each system is tested, with ``-m slow`` the others. A new
system joins by registering. Whether it is the official network, ``test_parity.py`` and
``test_published.py`` ask.
"""
from __future__ import annotations

import math

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from backbones import Backbone, UserError, available, create, describe, systems
from backbones.registry import smallest

SIZES = [(64, 96), (97, 131), (33, 65), (224, 224)]
TIMM = ['timm/convnext_atto', 'timm/mobilenetv3_small_050', 'timm/test_vit']
ROUNDINGS = dict(ceil=[math.ceil], floor=[math.floor], either=[math.floor, math.ceil])


def build(name: str, **options) -> Backbone:
    torch.manual_seed(0)
    return create(name, **{'drop_path_rate': 0., **options})


def backward(net: Backbone, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    maps = net(x)
    sum((y * torch.randn(y.shape, generator=generator)).sum() for y in maps).backward()
    return maps


def on_meta(name: str) -> Backbone:
    with torch.device('meta'):
        return create(name)


def same(a, b, atol: float = 1e-4) -> bool:
    return len(a) == len(b) and all(torch.allclose(x, y, atol=atol, rtol=1e-3)
                                    for x, y in zip(a, b))


@pytest.fixture(scope='module', params=[
    *(pytest.param(name, marks=[] if name in smallest() else pytest.mark.slow)
      for name in available()), *TIMM])
def name(request) -> str:
    return request.param


@pytest.fixture(scope='module')
def shared(name) -> Backbone:
    """One network for all tests that leave it as it is."""
    return build(name)


@pytest.fixture
def net(shared) -> Backbone:
    return shared.eval()


@pytest.fixture
def images(shared):
    """Makes batches of noise; for a network of one size they have that size."""
    def make(height: int = 64, width: int = 96, batch: int = 2) -> torch.Tensor:
        size = getattr(shared, 'size', None) or (height, width)
        return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))
    return make


@torch.no_grad()
def test_any_size(net, images):
    rounds = ROUNDINGS[getattr(net, 'size_rule', 'ceil')]
    for size in [net.size] if getattr(net, 'size', None) else SIZES:
        maps = net(images(*size))
        assert isinstance(maps, tuple) and len(maps) == len(net.out_indices)
        for y, channels, stride in zip(maps, net.out_channels, net.out_strides, strict=True):
            assert y.shape[:2] == (2, channels) and y.is_contiguous()
            for side, got in zip(size, y.shape[2:]):
                assert got in [to_int(side / stride) for to_int in rounds], (size, stride)


@torch.no_grad()
def test_sizes_leave_no_trace(net, images):
    x = images()
    before = net(x)
    net(images(97, 131, batch=1))
    assert same(before, net(x), atol=0)


@torch.no_grad()
def test_images_do_not_see_each_other(net, images):
    x = images(97, 131)
    assert same([y[1:] for y in net(x)], net(x[1:]))


@torch.no_grad()
def test_channels_last_input(net, images):
    x = images()
    maps = net(x.to(memory_format=torch.channels_last))
    assert same(maps, net(x)) and all(y.is_contiguous() for y in maps)


@torch.no_grad()
def test_modes(net, images):
    assert net.train() is net and net.training
    assert net.eval() is net and not any(module.training for module in net.modules())
    assert same(net(images()), net(images()), atol=0)


@torch.no_grad()
def test_autocast_is_finite(net, images):
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert all(y.isfinite().all() for y in net(images()))


@torch.no_grad()
def test_state_dict_round_trip(name, net, images):
    other = create(name).eval()
    assert not same(other(images()), net(images()))
    other.load_state_dict(net.state_dict(), strict=True)
    assert same(other(images()), net(images()))


def test_meta_construction(name, net):
    other = on_meta(name)
    assert all(tensor.is_meta for tensor in other.state_dict().values())
    shapes = {key: tensor.shape for key, tensor in net.state_dict().items()}
    assert {key: tensor.shape for key, tensor in other.state_dict().items()} == shapes
    assert (other.out_channels, other.out_strides) == (net.out_channels, net.out_strides)


@pytest.mark.parametrize('which', ['all', 'last', 'middle'])
def test_every_parameter_takes_part(name, net, which, images):
    every = net.out_indices
    chosen = dict(all=every, last=every[-1:], middle=every[1:2])[which]
    some = build(name, out_indices=chosen).train()
    positions = [every.index(i) for i in chosen]
    assert some.out_channels == tuple(net.out_channels[i] for i in positions)
    assert some.out_strides == tuple(net.out_strides[i] for i in positions)
    backward(some, images())
    assert [key for key, p in some.named_parameters() if p.grad is None] == []


def test_checkpointing_changes_nothing(name, images):
    nets = build(name).train(), build(name, with_cp=True).train()
    nets[1].load_state_dict(nets[0].state_dict())
    runs: tuple[list, list] = [], []
    for net, calls in zip(nets, runs):
        for module in net.modules():
            module.register_forward_hook(lambda *_, calls=calls: calls.append(1))
    expected, maps = (backward(net, images()) for net in nets)
    assert len(runs[1]) > len(runs[0]), 'nothing was recomputed'
    assert same(maps, expected)
    for (key, parameter), other in zip(nets[0].named_parameters(), nets[1].parameters()):
        scale = parameter.grad.abs().max().item() + 1e-3
        torch.testing.assert_close(other.grad, parameter.grad, atol=1e-3 * scale, rtol=1e-3,
                                   msg=lambda text, key=key: f'{key}: {text}')
    if not name.startswith('timm/'):  # timm's own checkpointing counts a batch twice
        for (key, buffer), other in zip(nets[0].named_buffers(), nets[1].buffers()):
            torch.testing.assert_close(other, buffer, msg=key)


@pytest.mark.parametrize('stages', [-1, 0, 1, 2])
def test_frozen_stages(name, stages, images):
    net = build(name, frozen_stages=stages, drop_path_rate=0.5).train()
    x = images()
    before = {key: tensor.clone() for key, tensor in net.named_buffers()}
    backward(net, x)
    for key, parameter in net.named_parameters():
        assert (parameter.grad is None) == (net.stage_id(key) <= stages), key
    frozen = {net.stage_id(key) for key, p in net.named_parameters() if not p.requires_grad}
    assert frozen == set(range(stages + 1))
    for key, buffer in net.named_buffers():
        if key.endswith('running_mean'):
            assert torch.equal(buffer, before[key]) == (net.stage_id(key) <= stages), key
    with torch.no_grad():
        training, fixed = net(x), net.eval()(x)
    equal = [torch.equal(a, b) for a, b in zip(training, fixed)]
    assert all(equal[:max(stages, 0)]) and not all(equal)


def test_norm_eval(name, images):
    x = images()
    for norm_eval in (False, True):
        net = build(name, norm_eval=norm_eval).train()
        norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
        before = [norm.running_mean.clone() for norm in norms]
        net(x)
        for norm, mean in zip(norms, before):
            assert norm.training is not norm_eval
            assert torch.equal(norm.running_mean, mean) is norm_eval
        assert net.training


def test_layers(net):
    """Layer ids follow the stages: stem 0, blocks up to num_layers, outputs num_layers + 1.
    Published numberings may leave an id out."""
    layers: dict[int, set[int]] = {}
    for key, _ in net.named_parameters():
        layers.setdefault(net.stage_id(key), set()).add(net.layer_id(key))
    outputs = {net.num_layers + 1}
    assert layers[0] == {0}
    assert {0, net.num_layers} <= set().union(*layers.values()) <= set(range(net.num_layers + 2))
    assert layers.pop(len(net.depths) + 1, outputs) == outputs
    stages = [layers[stage] - outputs for stage in sorted(layers)]
    assert all(max(a) <= min(b) for a, b in zip(stages, stages[1:]))
    assert len(stages) == len(net.depths) + 1


def test_no_weight_decay(net):
    assert net.no_weight_decay() <= {key for key, _ in net.named_parameters()}


@pytest.mark.parametrize('out_indices', [(), (1, 0), (0, 99)])
def test_wrong_out_indices(name, out_indices):
    with pytest.raises(UserError, match='out_indices'):
        create(name, out_indices=out_indices)


def test_wrong_settings(name):
    with pytest.raises(UserError, match=r"no setting 'colour'.*Known: \w+, "):
        create(name, colour='red')
    with pytest.raises(UserError, match="init_cfg must be dict.type='Pretrained'"):
        create(name, init_cfg=dict(type='Xavier')).init_weights()


# Systems, not networks


@pytest.mark.parametrize('cls', [cls for cls in systems().values() if cls.archs],
                         ids=lambda cls: cls.__name__)
def test_archs(cls):
    default = next(describe(name)['arch'] for name in smallest()
                   if describe(name)['type'] == cls.__name__)
    with torch.device('meta'):
        sizes = {arch: sum(p.numel() for p in cls(arch).parameters()) for arch in cls.archs}
        spelled_out = cls(dict(cls.archs[default])).state_dict()
        assert {key: tensor.shape for key, tensor in spelled_out.items()} == {
            key: tensor.shape for key, tensor in cls(default).state_dict().items()}
    assert sizes[default] <= 1.01 * min(sizes.values())
    with pytest.raises(UserError, match='no arch') as error:
        cls('nonsense')
    assert all(arch in str(error.value) for arch in cls.archs)
    with pytest.raises(UserError, match='lacks .*(depths|host)'):
        cls({})


def test_registry():
    assert {'dilateformer_tiny', 'resnet50', 'swin_tiny'} <= set(available())
    assert available() == sorted(set(available()))
    assert describe('swin_small') == dict(type='Swin', arch='small')
    assert describe('timm/resnet18.a1_in1k') == dict(type='TimmBackbone', name='resnet18.a1_in1k')
    with pytest.raises(UserError, match='did you mean dilateformer_tiny'):
        create('dilatformer_tiny')
    with torch.device('meta'):
        net = create('dilateformer_small', out_indices=(1,))
    assert net.out_channels == (144,) and net.depths == (3, 5)
