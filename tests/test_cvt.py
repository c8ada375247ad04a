"""What is CvT's own: its attention by the textbook, its pooled level, its names."""
import re

import pytest
import torch
import torch.nn.functional as F
from networks import stirred

from backbones import UserError, create
from backbones.checkpoint import load_pretrained
from backbones.cvt import Attention, CvT

SMALL = dict(dims=(8, 24, 16), heads=(1, 3, 4), depths=(1, 2, 3, 0))


def build(**options):
    """A small network whose every parameter matters."""
    return stirred(CvT(SMALL, **options))


def images(height=97, width=131):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


# The network


def textbook(layer, x, size):
    """Attention of all on all, one head after the other."""
    def project(which):
        conv, linear = getattr(layer, f'conv_proj_{which}'), getattr(layer, f'proj_{which}')
        image = x[:, -size[0] * size[1]:].transpose(1, 2).reshape(len(x), -1, *size)
        stride = 1 if which == 'q' else 2
        t = conv.bn(F.conv2d(image, conv.conv.weight, None, stride, 1, 1, x.shape[-1]))
        t = torch.cat([x[:, :-size[0] * size[1]], t.flatten(2).transpose(1, 2)], 1)
        return F.linear(t, linear.weight, linear.bias).chunk(layer.heads, -1)

    heads = [(q @ k.transpose(1, 2) * x.shape[-1] ** -0.5).softmax(-1) @ v
             for q, k, v in zip(*map(project, 'qkv'))]
    return F.linear(torch.cat(heads, -1), layer.proj.weight, layer.proj.bias)


@pytest.mark.parametrize('tokens', [0, 1], ids=['patches', 'class token'])
@pytest.mark.parametrize('size', [(6, 8), (5, 7), (1, 3), (1, 1)])
@torch.no_grad()
def test_attention_is_the_textbook(size, tokens):
    layer = stirred(Attention(12, 3))
    x = torch.randn(2, tokens + size[0] * size[1], 12)
    torch.testing.assert_close(layer(x, size), textbook(layer, x, size), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_quick_gelu():
    x = torch.randn(100) * 4
    act = build().stage0['blocks'][0].mlp.act
    torch.testing.assert_close(act(x), x * torch.sigmoid(1.702 * x))


@torch.no_grad()
def test_fourth_level_is_pooled():
    net, x = build(), images(97, 131)
    maps = net(x)
    assert [tuple(y.shape[2:]) for y in maps] == [(24, 33), (12, 17), (6, 9), (3, 5)]
    padded = F.pad(maps[2], (0, 1), value=-torch.inf)
    assert torch.equal(maps[3], padded.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5)))


@pytest.mark.parametrize('chosen', [(3,), (0, 3), (2, 3), (1,)])
@torch.no_grad()
def test_levels_do_not_depend_on_each_other(chosen):
    net, some = build(), CvT(SMALL, out_indices=chosen).eval()
    some.load_state_dict({name: net.state_dict()[name] for name in some.state_dict()})
    every = net(images())
    for y, i in zip(some(images()), chosen, strict=True):
        assert torch.equal(y, every[i])


def test_class_token_is_seen_only_by_the_last_stage():
    net = build()
    with torch.no_grad():
        before = net(images())
        net.stage2.cls_token += 1
        after = net(images())
    assert [torch.equal(a, b) for a, b in zip(before, after)] == [True, True, False, False]
    assert net.no_weight_decay() == {'stage2.cls_token'}
    assert build(out_indices=(1,)).no_weight_decay() == set()


def test_drop_path_of_the_last_stage_alone():
    net = build(drop_path_rate=0.4)
    rates = [[block.drop_path.drop_prob for block in net.get_submodule(f'stage{i}')['blocks']]
             for i in range(3)]
    assert rates == [[0], [0, 0], pytest.approx([0, 0.2, 0.4])]


def test_layers():
    net = build()
    ids = dict.fromkeys(('stage0.patch_embed.proj.bias', 'stage0.patch_embed.norm.bias'), 0)
    ids |= {'stage0.blocks.0.norm1.bias': 1, 'stage1.patch_embed.proj.bias': 2,
            'stage1.blocks.1.mlp.fc1.bias': 3, 'stage2.cls_token': 4, 'stage2.blocks.2.attn.': 6,
            'norm0.bias': 7, 'norm2.bias': 7}
    assert {name: net.layer_id(name) for name in ids} == ids


@pytest.mark.parametrize('depths', [(1, 2, 10), (1, 2, 10, 2), (1, 2, 4, 6, 0)])
def test_wrong_depths(depths):
    with pytest.raises(UserError, match='CvT'):
        CvT(depths=depths)


# Names


def transformers_name(name):
    """By hand, after Hugging Face's ``modeling_cvt``."""
    if name.startswith(('norm.', 'head.')):
        return name.replace('norm', 'layernorm').replace('head', 'classifier')
    stage, rest = re.fullmatch(r'stage(\d)\.(.+)', name).groups()
    rest = rest.replace('patch_embed.proj', 'embedding.convolution_embeddings.projection')
    rest = rest.replace('patch_embed.norm', 'embedding.convolution_embeddings.normalization')
    rest = rest.replace('blocks.', 'layers.')
    rest = rest.replace('norm1', 'layernorm_before').replace('norm2', 'layernorm_after')
    rest = rest.replace('mlp.fc1', 'intermediate.dense').replace('mlp.fc2', 'output.dense')
    for letter, word in dict(q='query', k='key', v='value').items():
        conv = f'attention.attention.convolution_projection_{word}.convolution_projection'
        rest = rest.replace(f'attn.conv_proj_{letter}.conv', f'{conv}.convolution')
        rest = rest.replace(f'attn.conv_proj_{letter}.bn', f'{conv}.normalization')
        rest = rest.replace(f'attn.proj_{letter}.', f'attention.attention.projection_{word}.')
    rest = rest.replace('attn.proj.', 'attention.output.dense.')
    return f'cvt.encoder.stages.{stage}.{rest}'


@pytest.mark.parametrize('names', ['official', 'official, running', 'transformers', 'its trunk'])
def test_checkpoints(names, tmp_path):
    net, path = build(out_norm=False), tmp_path / 'cvt.pth'
    state = {**net.state_dict(), 'norm.weight': torch.ones(16), 'norm.bias': torch.ones(16),
             'head.weight': torch.ones(10, 16), 'head.bias': torch.ones(10)}
    if names == 'official, running':
        state = dict(epoch=3, model='cls_cvt', state_dict=state, perf=0.5, optimizer={})
    elif names != 'official':
        state = {transformers_name(name): tensor for name, tensor in state.items()}
        assert ('cvt.encoder.stages.2.layers.1.attention.attention.convolution_projection_value.'
                'convolution_projection.normalization.running_mean') in state
        if names == 'its trunk':
            state = {name.removeprefix('cvt.'): tensor for name, tensor in state.items()
                     if not name.startswith('classifier')}
    torch.save(state, path)
    fresh = CvT(SMALL, out_norm=False).eval()
    report = load_pretrained(fresh, path)
    assert '100.0% of the parameters' in report and 'not in it' not in report
    with torch.no_grad():
        for ours, expected in zip(fresh(images()), net(images()), strict=True):
            assert torch.equal(ours, expected)


def test_no_checkpoint_holds_norms_of_outputs(tmp_path):
    torch.save(build(out_norm=False).state_dict(), tmp_path / 'cvt.pth')
    report = load_pretrained(create('cvt_13', **SMALL), tmp_path / 'cvt.pth')
    assert '100.0% of the parameters' in report and 'not in it: norm0.weight' in report
