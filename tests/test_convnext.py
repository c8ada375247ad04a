"""What is ConvNeXt's own: timm's numbers, four naming schemes, the authors' layer ids."""
import re

import pytest
import torch
import torch.nn.functional as F
from networks import difference_to_timm, renamed, stirred
from timm.models.convnext import ConvNeXt as Timm

from backbones.checkpoint import load_pretrained
from backbones.convnext import Block, ConvNeXt
from suite.optim import LayerDecay

SMALL = dict(dim=8, depths=(2, 1, 4, 1))
OFFICIAL = {r'^stem\.': 'downsample_layers.0.',
            r'^stages\.(\d)\.downsample': r'downsample_layers.\1', r'\.blocks': '',
            r'conv_dw': 'dwconv', r'mlp\.fc': 'pwconv', r'^head\.norm': 'norm',
            r'^head\.fc': 'head'}
NAMES = dict(
    timm={},
    features_only={r'^(stem|stages)\.(\d)': r'\1_\2'},
    official=OFFICIAL,
    mmpretrain={**OFFICIAL, 'dwconv': 'depthwise_conv', 'pwconv': 'pointwise_conv',
                r'^norm\.': 'norm3.', r'^head\.': 'head.fc.',
                r'^(?!head\.)': 'backbone.'})


@pytest.fixture(scope='module')
def theirs():
    """timm's classifier, away from its initialisation."""
    return stirred(Timm(num_classes=5, depths=SMALL['depths'], dims=(8, 16, 32, 64)))


@pytest.mark.parametrize('naming', NAMES)
def test_equals_timm(theirs, naming, tmp_path):
    torch.save(dict(model=renamed(theirs, NAMES[naming])), tmp_path / 'convnext.pth')
    ours = ConvNeXt(SMALL).eval()
    report = load_pretrained(ours, tmp_path / 'convnext.pth')
    own = len(ours.state_dict())
    assert report.startswith(f'loaded {own - 8} of {own} tensors, 100.0% of the parameters')
    assert difference_to_timm(ours, theirs) < 2e-5


def test_official_names(theirs):
    """The converted names above are the official ones."""
    names = renamed(theirs, NAMES['official']).keys()
    assert {'downsample_layers.0.1.bias', 'downsample_layers.3.1.weight', 'norm.weight',
            'stages.2.3.pwconv2.weight', 'stages.0.1.gamma', 'stages.1.0.dwconv.bias',
            'head.bias'} <= names
    assert {'backbone.norm3.bias', 'backbone.stages.2.3.pointwise_conv1.bias',
            'head.fc.weight'} <= renamed(theirs, NAMES['mmpretrain']).keys()


def test_output_norms_of_dense_checkpoints():
    """A detector of mmdetection has four output norms under mmpretrain's names, and ours too
    where it has one output."""
    net = ConvNeXt(SMALL)
    state = {f'norm{i}.{kind}': torch.ones(1) for i in range(4) for kind in ('weight', 'bias')}
    state['stages.0.0.depthwise_conv.weight'] = torch.ones(1)
    assert sum(name.startswith('norm') for name in net.convert(state, net)) == 8
    last = ConvNeXt(SMALL, out_indices=(3,))
    assert last.convert(last.state_dict(), last).keys() == last.state_dict().keys()


def test_equals_timm_in_bfloat16(theirs):
    ours = ConvNeXt(SMALL)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        x = torch.randn(1, 3, 64, 96)
        raw = theirs.forward_intermediates(x, intermediates_only=True)[-1]
        output = ours.eval()(x)[-1]
    assert output.dtype == torch.float32
    normed = F.layer_norm(raw.float().permute(0, 2, 3, 1), raw.shape[1:2], eps=1e-6)
    assert (output - normed.permute(0, 3, 1, 2)).abs().max() < 0.05


def test_drop_path_drops_whole_samples():
    torch.manual_seed(0)
    block = Block(8, ls_init_value=0.3, drop_path=0.75)
    x = torch.randn(64, 8, 5, 7)
    with torch.no_grad():
        branch = block.eval()(x) - x
        change = block.train()(x) - x
    kept = change.flatten(1).abs().amax(1) > 0
    assert 6 <= kept.sum() <= 28
    assert not change[~kept].any()
    assert torch.allclose(change[kept], 4 * branch[kept], atol=1e-5)


def test_gradients_equal_timms(theirs):
    """Through the one operation that scale, drop path and skip are, the scale's too."""
    block = theirs.stages[2].blocks[1]
    ours = Block(32)
    ours.load_state_dict(block.state_dict())
    grads = []
    for net in (block, ours):
        x = torch.linspace(-1, 1, 2 * 32 * 5 * 7).reshape(2, 32, 5, 7).requires_grad_()
        parameters = [x, *net.parameters()]
        grads.append(torch.autograd.grad(net(x).square().mean(), parameters))
    for grad, expected in zip(*grads, strict=True):
        assert (grad - expected).abs().max() < 1e-5 * (1 + expected.abs().max())


@pytest.mark.parametrize('arch, layers', [('tiny', 6), ('small', 12), ('xlarge', 12)])
def test_layer_ids(arch, layers):
    with torch.device('meta'):
        net = ConvNeXt(arch)
    ids = {}
    for name, _ in net.named_parameters():
        ids.setdefault(re.match(r'stem|norm\d|stages\.\d\.(downsample|blocks\.\d+)', name)[0],
                       set()).add(net.layer_id(name))
    expected = dict(stem=0, **{f'norm{i}': layers + 1 for i in range(4)})
    for stage, (depth, layer) in enumerate(zip(net.depths, (1, 2, 3, layers))):
        if stage:
            expected[f'stages.{stage}.downsample'] = layer
        for block in range(depth):
            expected[f'stages.{stage}.blocks.{block}'] = layer + (block // 3) * (stage == 2)
    assert net.num_layers == layers
    assert ids == {name: {layer} for name, layer in expected.items()}
    assert net.layer_id('stages.2.blocks.8.gamma') == 5


def test_vectors_take_no_weight_decay():
    """The authors' rule, with ``bias_decay=False``."""
    model = torch.nn.ModuleDict(dict(backbone=ConvNeXt(SMALL)))
    wrapper = LayerDecay(dict(optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05)),
                         dict(layer_decay=0.5, bias_decay=False))(model)
    decays = {id(p): group['weight_decay'] for group in wrapper.optimizer.param_groups
              for p in group['params']}
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (0.05 if parameter.ndim > 1 else 0), name
    rates = {group['lr'] for group in wrapper.optimizer.param_groups}
    assert rates == {1e-4 * 0.5 ** i for i in range(7)}


def test_initialisation():
    scales = [p for name, p in ConvNeXt(SMALL).named_parameters() if name.endswith('gamma')]
    assert len(scales) == 8 and all((p == 1).all() for p in scales)
    net = ConvNeXt(SMALL, layer_scale=1e-6)
    assert (net.stages[2]['blocks'][3].gamma == 1e-6).all()
    assert not net.stages[1]['downsample'][1].bias.any()
    std = net.stages[3]['blocks'][0].mlp.fc1.weight.std().item()
    assert std == pytest.approx(0.02, rel=0.1)
