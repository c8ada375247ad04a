"""What is EdgeNeXt's own: timm's numbers, both forms of SDTA, three naming schemes."""
import math

import pytest
import torch
import torch.nn.functional as F
from networks import difference_to_timm, renamed, stirred
from timm.models.edgenext import EdgeNeXt as Timm

from backbones import UserError
from backbones.checkpoint import load_pretrained
from backbones.edgenext import FORMS, EdgeNeXt, PositionEncoding, SDTAEncoder
from suite.optim import LayerDecay

# Widths that no number of groups divides: 7, 7, 6 and 6, 6, 6, 4.
TINY = dict(dims=(6, 10, 20, 22), depths=(1, 2, 3, 2), heads=2, form='ln_gelu', layer_scale=1.,
            out_norm=True)
OFFICIAL = {r'^stem\.': 'downsample_layers.0.',
            r'^stages\.(\d)\.downsample': r'downsample_layers.\1', r'\.blocks': '',
            r'conv_dw': 'dwconv', r'mlp\.fc': 'pwconv', r'^head\.norm': 'norm',
            r'^head\.fc': 'head'}
NAMES = dict(timm={}, features_only={r'^(stem|stages)\.(\d)': r'\1_\2'}, official=OFFICIAL)


@pytest.fixture(scope='module')
def theirs():
    """timm's classifier, away from its initialisation."""
    return stirred(Timm(num_classes=5, dims=TINY['dims'], depths=TINY['depths'],
                        heads=(2, 2, 2, 2)))


@pytest.mark.parametrize('naming', NAMES)
def test_equals_timm(theirs, naming, tmp_path):
    torch.save(dict(model_ema=renamed(theirs, NAMES[naming])), tmp_path / 'edgenext.pth')
    ours = EdgeNeXt(TINY).eval()
    report = load_pretrained(ours, tmp_path / 'edgenext.pth')
    own = len(ours.state_dict())
    assert report.startswith(f'loaded {own - 8} of {own} tensors, 100.0% of the parameters')
    assert difference_to_timm(ours, theirs) < 5e-5


def test_official_names(theirs):
    """The names converted above are the official ones, and ours."""
    names = renamed(theirs, NAMES['official']).keys()
    assert {'stages.1.1.pos_embd.token_projection.bias', 'stages.3.1.xca.temperature',
            'stages.2.2.convs.1.weight', 'stages.2.0.dwconv.bias', 'stages.0.0.pwconv2.bias',
            'downsample_layers.0.1.bias', 'downsample_layers.3.1.weight', 'stages.1.1.gamma_xca',
            'norm.bias', 'head.weight'} <= names
    own = EdgeNeXt(TINY, out_norm=False).state_dict().keys()
    assert own == {name for name in names if not name.startswith(('norm.', 'head.'))}


def randomised(net):
    torch.manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.5)
    for buffer in net.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    return net.eval()


def textbook(net, x):
    """SDTA by its description, a group, a head and a pair of channels at a time. C x H x W."""
    channels, height, width = x.shape

    def norm(y, layer):
        if isinstance(layer, torch.nn.BatchNorm2d):
            return layer(y[None])[0]
        mean, var = y.mean(0), y.var(0, correction=0)
        return ((y - mean) / (var + 1e-6).sqrt() * layer.weight[:, None, None]
                + layer.bias[:, None, None])

    def linear(y, layer):
        return torch.einsum('oi,ihw->ohw', layer.weight, y) + layer.bias[:, None, None]

    groups, parts = len(net.convs) + 1, []
    size = math.ceil(channels / groups)
    for group in range(groups - 1):
        part = x[group * size:(group + 1) * size]
        parts.append(net.convs[group](part + (parts[-1] if parts else 0)))
    y = torch.cat([*parts, x[(groups - 1) * size:]])
    batch_norm = isinstance(net.norm, torch.nn.BatchNorm2d)
    if batch_norm:
        y = norm(y, net.norm_xca)
    if net.pos_embd is not None:
        y = y + net.pos_embd(height, width)[0]
    q, k, v = linear(y if batch_norm else norm(y, net.norm_xca), net.xca.qkv).chunk(3)
    mixed = torch.zeros_like(v)
    size = channels // net.xca.heads
    for head in range(net.xca.heads):
        for i in range(head * size, (head + 1) * size):
            cosines = [(q[i] * k[j]).sum() / (q[i].norm() * k[j].norm())
                       for j in range(head * size, (head + 1) * size)]
            weights = (torch.stack(cosines) * net.xca.temperature[head, 0, 0]).softmax(0)
            for j, weight in enumerate(weights, head * size):
                mixed[i] += weight * v[j]
    y = y + net.gamma_xca[:, None, None] * linear(mixed, net.xca.proj)
    act = F.hardswish if batch_norm else F.gelu
    y = linear(act(linear(norm(y, net.norm), net.pwconv1)), net.pwconv2)
    return x + net.gamma[:, None, None] * y


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('channels, groups, position', [(10, 2, True), (20, 3, False),
                                                        (22, 4, False)])
@torch.no_grad()
def test_sdta_is_its_description(form, channels, groups, position):
    net = randomised(SDTAEncoder(channels, 2, groups, position, FORMS[form], 1., 0.))
    x = torch.randn(2, channels, 5, 7)
    expected = torch.stack([textbook(net, image) for image in x])
    torch.testing.assert_close(net(x), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_position_encoding_is_the_formula():
    """Rows before columns; sine and cosine in turns, of falling frequency."""
    net = PositionEncoding(64)
    net.token_projection.weight.copy_(torch.eye(64)[..., None, None])
    net.token_projection.bias.zero_()
    height, width = 3, 5
    encoding = net(height, width)[0]
    for channel in range(64):
        wave = [math.sin, math.cos][channel % 2]
        period = 10000 ** (2 * (channel % 32 // 2) / 32)
        for y in range(height):
            for x in range(width):
                share = (y + 1) / height if channel < 32 else (x + 1) / width
                assert encoding[channel, y, x].item() == pytest.approx(
                    wave(2 * math.pi * share / period), abs=1e-5)


def test_second_form():
    """BatchNorm without biases before it, but in SDTA's convolutions; Hardswish."""
    net = EdgeNeXt(TINY, form='bn_hs')
    convs = {name: module for name, module in net.named_modules()
             if isinstance(module, torch.nn.Conv2d)}
    biased = {name for name, conv in convs.items() if conv.bias is not None}
    assert biased == {name for name in convs if '.convs.' in name or 'projection' in name}
    kinds = {type(module).__name__ for module in net.stages.modules()}
    assert {'BatchNorm2d', 'Hardswish'} <= kinds and not kinds & {'LayerNorm2d', 'GELU'}
    assert type(net.norm0).__name__ == 'LayerNorm2d'
    with pytest.raises(UserError, match="no form 'bn'; did you mean bn_hs"):
        EdgeNeXt(form='bn')


def test_downsampling_belongs_to_the_stage_behind_it():
    with torch.device('meta'):
        net = EdgeNeXt('small')
    blocks = {'downsample_layers.0.0.weight': (0, 0), 'stages.0.2.gamma': (1, 3),
              'downsample_layers.1.1.bias': (2, 4), 'stages.1.0.norm.bias': (2, 4),
              'stages.1.2.convs.0.bias': (2, 6), 'downsample_layers.3.0.weight': (4, 16),
              'stages.3.2.xca.temperature': (4, 18), 'norm0.weight': (5, 19)}
    assert {name: (net.stage_id(name), net.layer_id(name)) for name in blocks} == blocks
    net = EdgeNeXt(TINY, frozen_stages=1).train()
    assert not net.downsample_layers[0].training and not net.stages[0].training
    assert net.downsample_layers[1].training and net.stages[1].training


def test_vectors_and_temperatures_take_no_weight_decay():
    model = torch.nn.ModuleDict(dict(backbone=EdgeNeXt(TINY)))
    wrapper = LayerDecay(dict(optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05)),
                         dict(bias_decay=False))(model)
    decays = {id(p): group['weight_decay'] for group in wrapper.optimizer.param_groups
              for p in group['params']}
    for name, parameter in model.named_parameters():
        spared = parameter.ndim == 1 or name.endswith('temperature')
        assert decays[id(parameter)] == (0 if spared else 0.05), name


@pytest.mark.parametrize('scale', [1, 1e-6])
def test_layer_scale(scale):
    scales = [p for name, p in EdgeNeXt(TINY, layer_scale=scale).named_parameters()
              if 'gamma' in name]
    assert len(scales) == 8 + 3 and all((p == scale).all() for p in scales)
