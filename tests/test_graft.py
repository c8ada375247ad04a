"""GrafT-style grafts (our reconstruction): the formula, the hosts left as they were, whose
weights load, and a host that GrafT's file does not know."""
import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import stirred
from timm.layers import DropPath
from torch import nn

from backbones import Backbone, UserError, create
from backbones.checkpoint import load_pretrained
from backbones.graft import GrafT, Graft
from backbones.graftable import Graftable, Site
from backbones.registry import _SYSTEMS, MODELS, register
from suite import parity
from suite.complexity import of_backbone

FIGURES = Path(__file__).parent / 'data' / 'parity'
SMALL = dict(type='Swin', arch='tiny', dim=24, depths=(2, 2, 3), heads=(2, 4, 4), window=4,
             out_indices=(0, 1, 2))
HOSTS = [SMALL, dict(type='MobileViT'),
         dict(type='DeiT', dim=24, depths=(1, 1, 2, 1), heads=3),
         dict(type='DilateFormer', dim=24, depths=(1, 1, 2, 1), heads=(3, 3, 3, 3)),
         dict(type='CvT', dims=(8, 24, 16), heads=(1, 3, 4), depths=(1, 2, 3, 0))]


def images(height=97, width=131):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def gains(net):
    return [parameter for name, parameter in net.named_parameters()
            if name.endswith('.graft.gamma')]


@torch.no_grad()
def stir(net, gain):
    """Every gain of a graft set to the same value."""
    for gamma in gains(net):
        gamma.fill_(gain)
    return net.eval()


# The formula


def attention(attn, tokens):
    """Of all tokens (N x C) on all, one head after the other."""
    q, k, v = F.linear(tokens, attn.qkv.weight, attn.qkv.bias).chunk(3, -1)
    heads = [(q @ k.T / q.shape[1] ** 0.5).softmax(-1) @ v for q, k, v in zip(
        *(t.chunk(attn.num_heads, -1) for t in (q, k, v)))]
    return F.linear(torch.cat(heads, -1), attn.proj.weight, attn.proj.bias)


def scale(graft, b, x, window):
    """What scale b makes of H x W x C: half the grid, then attention with a skip."""
    merge = graft.merge[b]
    t = F.conv2d(x.permute(2, 0, 1)[None], merge.weight, merge.bias, 2, 1, groups=x.shape[2])
    t = t[0].permute(1, 2, 0)
    rows, columns = t.shape[:2]
    side = window or max(rows, columns)
    u, out = graft.norm[b](t), torch.zeros_like(t)
    for y in range(0, rows, side):
        for x in range(0, columns, side):
            tokens = torch.zeros(side, side, t.shape[2])
            inside = u[y:y + side, x:x + side]
            tokens[:len(inside), :inside.shape[1]] = inside
            if not window:
                tokens = inside
            answer = attention(graft.attn[b], tokens.flatten(0, 1)).view(tokens.shape)
            out[y:y + side, x:x + side] = answer[:len(inside), :inside.shape[1]]
    return t + out


def enlarged(x, size):
    return F.interpolate(x.permute(2, 0, 1)[None], size, mode='bilinear')[0].permute(1, 2, 0)


@pytest.mark.parametrize('window', [None, 3], ids=['global', 'windows'])
@pytest.mark.parametrize('size', [(12, 16), (13, 9), (1, 3)])
@torch.no_grad()
def test_graft_is_the_textbook(size, window):
    """Three scales out and back. All but the last keep to the host's windows, padded with
    zeros that are keys."""
    graft = stirred(Graft(Site(8, 2, window, 1e-6), 3))
    u = torch.randn(2, *size, 8)
    for image, answer in zip(u, graft(u), strict=True):
        s1 = scale(graft, 0, image, window)
        s2 = scale(graft, 1, s1, window)
        s3 = scale(graft, 2, s2, None)
        r = s1 + enlarged(s2 + enlarged(s3, s2.shape[:2]), s1.shape[:2])
        torch.testing.assert_close(answer, graft.gamma * enlarged(r, size), atol=1e-4, rtol=1e-4)
    assert graft.norm[0].eps == 1e-6


@torch.no_grad()
def test_a_grafted_block():
    """Attention and graft take the same normed map, and drop their paths each for itself."""
    block = GrafT(host=SMALL).host.layers[0]['blocks'][0]
    stirred(block)
    x = torch.randn(2, 9, 10, 24)
    u = block.norm1(x)
    joined = x + block.attn(u, None) + block.graft(u)
    torch.testing.assert_close(block(x, None), joined + block.mlp(block.norm2(joined)))
    drops = []
    block.drop_path.register_forward_hook(lambda _, inputs, __: drops.append(inputs[0]))
    block(x, None)
    assert len(drops) == 3 and torch.equal(drops[1], block.graft(u))


# The hosts


@pytest.mark.parametrize('arch, host, added, gmacs', [
    ('swin_tiny', 'swin_tiny', 2_205_600, 0.187),
    ('deit_tiny', 'deit_tiny', 1_204_992, 0.044),
    ('mobilevit_xxs', 'mobilevit_xxs', 219_552, 0.022)])
def test_what_grafts_cost(arch, host, added, gmacs):
    """The sheet's figures; its operations are of the training size, and count norms and
    interpolation, too."""
    side = 256 if arch == 'mobilevit_xxs' else 224
    plain, grafted = (of_backbone(name, (side, side)) for name in (host, f'graft_{arch}'))
    assert grafted.parameters - plain.parameters == added
    assert (grafted.macs - plain.macs) / 1e9 == pytest.approx(gmacs, rel=0.04)
    with torch.device('meta'):
        net = create(f'graft_{arch}')
    grafts = [(module, len(module.gamma), len(module.merge)) for module in net.modules()
              if isinstance(module, Graft)]
    sizes = [sum(p.numel() for p in module.parameters()) for module, _, _ in grafts]
    assert sizes == [b * (4 * c ** 2 + 16 * c) + c for _, c, b in grafts]
    assert sum(sizes) == added and len(grafts) == len(net.grafts)


@pytest.mark.parametrize('case', ['swin_t__224x224', 'deit_t__224x224',
                                  'mobilevit_xxs__256x256'])
def test_official_figures_agree_with_grafts_at_gain_zero(case):
    case = parity.read_case(FIGURES / f'graft__host_{case}.json')
    system = parity.system_of(case)
    options = system.reference(case.variant, (case.input['height'], case.input['width']))
    official = system(**options).eval()
    parity.load(official, case.shapes)
    net = GrafT(host=dict(type=system.__name__, **options)).eval()
    net.load_state_dict(official.state_dict(), strict=False)
    assert len(gains(net)) >= 4
    x, allowed = parity.image(**case.input), parity.tolerances(case)
    with torch.no_grad():
        assert parity.compare(net(x), case.outputs, allowed) < 1e-5
        with pytest.raises(parity.Disagreement):
            parity.compare(stir(net, 0.1)(x), case.outputs, allowed)


@pytest.mark.parametrize('options', HOSTS, ids=lambda options: options['type'])
@torch.no_grad()
def test_gains_open_the_grafts(options):
    """At zero the host's outputs, else others; the state dict is the host's and the grafts'."""
    host, net = MODELS.build(options).eval(), GrafT(host=options).eval()
    net.load_state_dict(host.state_dict(), strict=False)
    added = net.state_dict().keys() - host.state_dict().keys()
    assert host.state_dict().keys() < net.state_dict().keys()
    assert added == {name for name in net.state_dict() if '.graft.' in name}
    x = images()
    expected = host(x)
    assert all((a - b).abs().max() <= 1e-6 for a, b in zip(net(x), expected, strict=True))
    changed = [(a - b).abs().max() > 1e-3 for a, b in zip(stir(net, 1.)(x), expected)]
    # MobileViT has no transformer at stride 4.
    assert changed == [options['type'] != 'MobileViT', *[True] * (len(changed) - 1)]


def test_default_places():
    with torch.device('meta'):
        assert create('graft_swin_tiny').grafts == {
            'layers.0.blocks.0': 3, 'layers.1.blocks.0': 2, 'layers.2.blocks.0': 1,
            'layers.2.blocks.2': 1, 'layers.2.blocks.4': 1}
        assert create('graft_deit_tiny').grafts == {f'blocks.{i}': 2 for i in (0, 3, 6, 9)}
        assert create('graft_mobilevit_xxs').grafts == {
            'stages.2.1.transformer.0': 2, 'stages.3.1.transformer.0': 2,
            'stages.3.1.transformer.2': 2, 'stages.4.1.transformer.0': 1,
            'stages.4.1.transformer.2': 1}
        sites = {name: module.site for name, module in create('graft_dilateformer_tiny')
                 .named_modules() if isinstance(module, Graftable)}
        assert list(create('graft_swin_tiny', out_indices=(1,)).grafts) == [
            'layers.0.blocks.0', 'layers.1.blocks.0']
    # As wide as dilation 3 reaches; global stages have none.
    assert sites['stages.1.blocks.1'] == Site(144, 6, 7, 1e-6)
    assert sites['stages.2.blocks.5'] == Site(288, 12, None, 1e-6)


@torch.no_grad()
def test_places_of_ones_own():
    places = {'layers.1.blocks.1': 1, 'layers.2.blocks.2': 6}
    net, none = GrafT(host=SMALL, grafts=places), GrafT(host=SMALL, grafts={})
    assert {name.partition('.graft.')[0] for name in net.state_dict() if '.graft.' in name} == set(
        places)
    none.load_state_dict(net.state_dict(), strict=False)
    before, after = none.eval()(images()), stir(net, 1.)(images())
    assert [torch.equal(a, b) for a, b in zip(before, after)] == [True, False, False]


class OtherBlock(Graftable):
    """Of a host that exists in this test alone."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads, eps=1e-3)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-3), nn.LayerNorm(dim, eps=1e-3)
        self.attn, self.mlp = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.drop_path = DropPath(0.)

    def forward(self, x):
        u = self.norm1(x)
        x = x + self.drop_path(self.attn(u))
        if self.graft is not None:
            x = x + self.drop_path(self.graft(u))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Other(Backbone):
    def __init__(self, arch='one', out_indices=(0, 1), **options):
        super().__init__(out_indices)
        self.settings(arch, options)
        self.depths, self.out_channels, self.out_strides = (3, 1), (8, 8), (4, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.stages = nn.ModuleList(nn.ModuleDict(dict(blocks=nn.ModuleList(
            OtherBlock(8, 2) for _ in range(depth)))) for depth in self.depths)
        self.freeze()

    def forward(self, x):
        x, maps = self.patches(x).permute(0, 2, 3, 1) * self.scale, []
        for stage in self.stages:
            for block in stage['blocks']:
                x = self.run(block, x)
            maps.append(x.permute(0, 3, 1, 2).contiguous())
            x = x[:, ::2, ::2]
        return tuple(maps)


@pytest.fixture
def other():
    yield register(Other, dict(one=dict(depths=(3, 1))))
    _SYSTEMS.pop('Other')
    MODELS.module_dict.pop('Other')


def test_a_new_host_is_grafted(other):
    host, net = other(), GrafT(host=dict(type='Other'))
    assert net.grafts == {'stages.0.blocks.0': 3, 'stages.0.blocks.2': 3, 'stages.1.blocks.0': 2}
    net.load_state_dict(host.state_dict(), strict=False)
    x = images(64, 96)
    assert all(map(torch.equal, net(x), host(x)))
    assert net.stages[1]['blocks'][0].graft.norm[1].eps == 1e-3
    assert not any(map(torch.equal, stir(net, 1.)(x), host(x)))


# Training and weights


def test_gradients_reach_every_parameter():
    net = GrafT(host=SMALL)
    sum(y.square().mean() for y in net(images())).backward()
    grads = {name: p.grad for name, p in net.named_parameters() if '.graft.' in name}
    assert all(grad is not None for grad in grads.values())
    assert all(grad.abs().max() > 0 for name, grad in grads.items() if name.endswith('gamma'))
    assert not any(grad.any() for name, grad in grads.items() if not name.endswith('gamma'))
    stir(net, 0.5).train().zero_grad()
    sum(y.square().mean() for y in net(images())).backward()
    assert all(p.grad.abs().max() > 0 for name, p in net.named_parameters() if '.graft.' in name)


def test_grafts_belong_to_their_block():
    net = GrafT(host=SMALL, frozen_stages=2, drop_path_rate=0.5).train()
    name = 'layers.2.blocks.0.graft.attn.0.qkv.weight'
    assert (net.num_layers, net.layer_id(name), net.stage_id(name)) == (7, 5, 3)
    assert 'layers.1.blocks.0.graft.gamma' in net.no_weight_decay()
    assert len(net.no_weight_decay()) == 7 + len(net.grafts)
    trained = {n.partition('.graft.')[0] for n, p in net.named_parameters()
               if '.graft.' in n and p.requires_grad}
    assert trained == {'layers.2.blocks.0', 'layers.2.blocks.2'}
    assert net.training and net.host.training
    assert not net.layers[0]['blocks'][0].graft.training
    assert net.layers[2]['blocks'][0].graft.training and not net.eval().host.training


def test_a_copy_is_a_network_of_its_own(other):
    """Also in what stands outside of any module."""
    net = stir(GrafT(host=dict(type='Other')), 1.)
    twin = copy.deepcopy(net)
    x = images(64, 96)
    before = net(x)
    assert all(map(torch.equal, twin(x), before))
    with torch.no_grad():
        twin.scale.zero_()
        twin.stages[1]['blocks'][0].graft.gamma.zero_()
    assert all(map(torch.equal, net(x), before))
    assert not any(map(torch.equal, twin(x), before))
    assert twin.host.scale is twin.scale is not net.scale
    assert net.to(torch.float64).host.scale.dtype == torch.float64


def test_weights_of_the_host(tmp_path):
    """All of them are taken, and exactly the grafts are left, and named."""
    host = GrafT(host=SMALL, grafts={})
    torch.save(dict(model={**stirred(host).state_dict(), 'head.weight': torch.ones(10, 96)}),
               tmp_path / 'host.pth')
    net = GrafT(host=SMALL, init_cfg=dict(type='Pretrained',
                                          checkpoint=str(tmp_path / 'host.pth')))
    report = load_pretrained(net, tmp_path / 'host.pth')
    total, kept = len(net.state_dict()), len(host.state_dict())
    assert report.startswith(f'loaded {kept} of {total} tensors, 100.0% of the parameters')
    assert report.endswith('; not in it: ' + ', '.join(f'{name}.graft.*' for name in net.grafts))
    again = GrafT(host=SMALL, init_cfg=net.init_cfg)
    again.init_weights()
    assert all(torch.equal(again.state_dict()[name], tensor)
               for name, tensor in host.state_dict().items())
    assert not any(gamma.any() for gamma in gains(again))


def test_weights_of_a_classifier(tmp_path):
    """ImageNet's Swin lacks the norms of the outputs, too."""
    state = {name: tensor for name, tensor in GrafT(host=SMALL, grafts={}).state_dict().items()
             if not name.startswith('norm')}
    torch.save(state, tmp_path / 'swin.pth')
    report = load_pretrained(GrafT(host=SMALL, grafts={'layers.0.blocks.0': 3}),
                             tmp_path / 'swin.pth')
    assert report.endswith('; not in it: layers.0.blocks.0.graft.*, norm0.weight, norm0.bias, '
                           'norm1.weight, norm1.bias, ...')


def test_weights_of_its_own(tmp_path):
    net = stirred(GrafT(host=SMALL))
    torch.save(net.state_dict(), tmp_path / 'graft.pth')
    fresh = GrafT(host=SMALL).eval()
    assert 'not in it' not in load_pretrained(fresh, tmp_path / 'graft.pth')
    assert all(map(torch.equal, fresh(images()), net(images())))


# Mistakes


@pytest.mark.parametrize('options, message', [
    (dict(), r"lacks a host: give host=dict\(type='Swin', arch='tiny'\).*Known: mobilevit_xxs"),
    (dict(host=dict(arch='tiny')), 'lacks a host'),
    (dict(host='swin_tiny'), 'lacks a host'),
    (dict(arch='swin_tiny', host=SMALL), 'give one of them'),
    (dict(arch=dict(host=SMALL, depths=(1,))), "nothing else, got 'depths'"),
    (dict(arch='swin_tinny'), "no arch 'swin_tinny'; did you mean swin_tiny"),
    (dict(host=dict(type='Swim')), "unknown host 'Swim'; did you mean Swin"),
    (dict(host=dict(type='GrafT', arch='swin_tiny')), "unknown host 'GrafT'"),
    (dict(host=dict(type='ResNet')), 'ResNet has no blocks to graft onto; .*graftable.py'),
    (dict(host=dict(type='Swin', arch='huge')), "Swin has no arch 'huge'"),
    (dict(host=SMALL, grafts={'layers.0.block.0': 1}),
     "Swin has no block 'layers.0.block.0'; did you mean layers.0.blocks.0"),
    (dict(host=SMALL, grafts={'layers.0.blocks.0': 0}), 'layers.0.blocks.0 must have 1 .* got 0'),
    (dict(host=SMALL, grafts={'layers.0.blocks.0': 'two'}), "1 scale or more, got 'two'")])
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message) as error:
        GrafT(**options)
    assert '\n' not in str(error.value)
