"""What is MViT's own: pooling attention in all its forms, timm's numbers, everybody's names."""
import math
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from backbones import UserError, create
from backbones.checkpoint import load_pretrained
from backbones.mvit import MViT, PoolingAttention

V2 = dict(dim=16, heads=1, depths=(1, 2, 2, 1), relative=True, widen='attn', pool='conv',
          cls_token=False, windows=True, img_size=64)
V1 = dict(V2, relative=False, widen='mlp', cls_token=True, windows=False)


def lively(net):
    """No parameter is 0, no gain 1."""
    torch.manual_seed(0)
    for name, parameter in net.named_parameters():
        nn.init.normal_(parameter, float('norm' in name and name.endswith('weight')), 0.3)
    return net.eval()


# Attention as the sheet has it: image by image, head by head, window by window, and the
# relative position of every pair on its own.


def textbook_pool(attn, which, t, size):
    pool, norm = attn.get_submodule(f'pool_{which}'), attn.get_submodule(f'norm_{which}')
    tokens, image = t[:attn.tokens], t[attn.tokens:].T.unflatten(1, size)
    if isinstance(pool, nn.Conv2d):
        image = F.conv2d(image, pool.weight, None, pool.stride, 1, groups=len(image))
    elif isinstance(pool, nn.MaxPool2d):
        image = F.max_pool2d(image, 3, pool.stride, 1)
    tokens, grid = norm(tokens), norm(image.permute(1, 2, 0))
    return tokens, grid


def textbook_distances(table, queries, keys):
    if len(table) != 2 * max(queries, keys) - 1:
        table = F.interpolate(table.T[None], 2 * max(queries, keys) - 1, mode='linear')[0].T
    near, far = max(keys / queries, 1), max(queries / keys, 1)
    return torch.stack([torch.stack([table[math.floor(i * near + (keys - 1 - j) * far + 1e-9)]
                                     for j in range(keys)]) for i in range(queries)])


def textbook_window(attn, q, k, v):
    """Queries, keys, values: pairs of tokens x C and height x width x C."""
    logits = torch.cat([q[0], q[1].flatten(0, 1)]) @ torch.cat([k[0], k[1].flatten(0, 1)]).T
    logits = logits * q[1].shape[-1] ** -0.5
    if attn.relative:
        (height, width), (rows, columns) = q[1].shape[:2], k[1].shape[:2]
        vertical = textbook_distances(attn.rel_pos_h, height, rows)
        horizontal = textbook_distances(attn.rel_pos_w, width, columns)
        for y in range(height):
            for x in range(width):
                term = (vertical[y] @ q[1][y, x])[:, None] + horizontal[x] @ q[1][y, x]
                logits[attn.tokens + y * width + x, attn.tokens:] += term.flatten()
    out = logits.softmax(-1) @ torch.cat([v[0], v[1].flatten(0, 1)])
    return out[:attn.tokens], out[attn.tokens:].unflatten(0, q[1].shape[:2])


def textbook_head(attn, q, k, v):
    tokens, grid = q
    if attn.window is None:
        tokens, out = textbook_window(attn, q, k, v)
    else:
        sides = [attn.window // stride for stride in attn.strides]
        counts = [math.ceil(size / sides[0]) for size in grid.shape[:2]]

        def cut(image, side, row, column):
            whole = image.new_zeros(counts[0] * side, counts[1] * side, image.shape[-1])
            whole[:image.shape[0], :image.shape[1]] = image
            return whole[:0, 0], whole[row * side:(row + 1) * side,
                                       column * side:(column + 1) * side]

        out = torch.cat([torch.cat([textbook_window(
            attn, cut(q[1], sides[0], row, column), cut(k[1], sides[1], row, column),
            cut(v[1], sides[1], row, column))[1] for column in range(counts[1])], 1)
            for row in range(counts[0])])[:grid.shape[0], :grid.shape[1]]
    if attn.relative:
        out = out + grid
    return torch.cat([tokens, out.flatten(0, 1)])


def textbook(attn, x, size):
    images = []
    for t in attn.qkv(x).unflatten(-1, (3, attn.heads, -1)):
        heads = [textbook_head(attn, *(textbook_pool(attn, which, t[:, i, head], size)
                                       for i, which in enumerate('qkv')))
                 for head in range(attn.heads)]
        images.append(torch.cat(heads, -1))
    return attn.proj(torch.stack(images))


@pytest.mark.parametrize('strides', [(1, 4), (2, 2), (1, 1)])
@pytest.mark.parametrize('form', [
    dict(tokens=0, windows=True, relative=True, pool='conv'),
    dict(tokens=0, windows=False, relative=True, pool='conv'),
    dict(tokens=1, windows=False, relative=True, pool='conv'),
    dict(tokens=1, windows=False, relative=False, pool='conv'),
    dict(tokens=1, windows=False, relative=False, pool='max'),
    dict(tokens=0, windows=True, relative=False, pool='conv'),
], ids=['detection', 'classifier', 'class token', 'v1', 'v1 max', 'v1 windows'])
@torch.no_grad()
def test_attention_equals_the_textbook(form, strides):
    attn = lively(PoolingAttention(6, 8, 2, strides, side=8, **form)).double()
    for size in ((8, 8), (7, 11)):
        x = torch.randn(2, form['tokens'] + math.prod(size), 6, dtype=torch.double)
        # Resampled tables are float32.
        torch.testing.assert_close(attn(x, size), textbook(attn, x, size), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('size', [224, 96])
@torch.no_grad()
def test_equals_timm(size, tmp_path):
    """Their classifier takes squares of the size for which it was built."""
    theirs = lively(timm.create_model('mvitv2_tiny', img_size=size))
    net = create('mvitv2_tiny', windows=False, out_norm=False, img_size=size).eval()
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    report = load_pretrained(net, tmp_path / 'timm.pth')
    assert report.startswith(f'loaded {len(net.state_dict())} of {len(net.state_dict())} tensors')
    x = torch.randn(1, 3, size, size)
    for y, other in zip(net(x), theirs.forward_intermediates(x, intermediates_only=True)):
        assert (y - other).abs().max() < 1e-4 * other.std()


# Names


def to_slowfast(name, tensor):
    """Pooling weights with a time axis, and a classifier."""
    return name, tensor[:, :, None] if '.pool_' in name else tensor


def to_detectron2(name, tensor):
    return f'backbone.bottom_up.{name}', tensor


def to_timm(name, tensor):
    starts = [0, 1, 3, 5]

    def block(match):
        stage = max(stage for stage in range(4) if starts[stage] <= int(match[1]))
        return f'stages.{stage}.blocks.{int(match[1]) - starts[stage]}.'

    name = re.sub(r'^(blocks\.\d+)\.proj', r'\1.shortcut_proj_attn', name)
    return re.sub(r'^blocks\.(\d+)\.', block, name), tensor


def to_mmpretrain(name, tensor):
    name = name.replace('patch_embed.proj.', 'patch_embed.projection.')
    return 'backbone.' + re.sub(r'^scale(\d)_norm', lambda m: f'norm{int(m[1]) - 2}', name), tensor


@pytest.mark.parametrize('rename', [to_slowfast, to_detectron2, to_timm, to_mmpretrain])
@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1,)])
def test_names(rename, out_indices, tmp_path):
    whole, net = lively(MViT(V2)), MViT(V2, out_indices)
    state = dict(rename(*item) for item in whole.state_dict().items())
    state.update({'head.projection.weight': torch.ones(5, 128), 'cls_token': torch.ones(1, 1, 16)})
    torch.save(dict(model_state=state, epoch=3), tmp_path / 'x.pyth')
    report = load_pretrained(net, tmp_path / 'x.pyth', 'model_state')
    assert f'{len(net.state_dict())} of {len(net.state_dict())} tensors, 100.0%' in report
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name]), name


def test_what_pretraining_leaves_out():
    """The final norm goes with the classifier; norms of outputs start afresh."""
    net = MViT(V1)
    state = {name: tensor for name, tensor in net.state_dict().items() if 'scale' not in name}
    classifier = {'norm.weight': torch.ones(128), 'head.projection.weight': torch.ones(5, 128)}
    given = net.convert({**state, **classifier}, net)
    assert given.keys() == state.keys()


@pytest.mark.parametrize('arch', [V1, dict(V1, cls_token=False), dict(V2, windows=False)],
                         ids=['v1', 'v1 without class token', 'v2'])
@torch.no_grad()
def test_tables_of_another_size(arch):
    """Resampled once on loading or again in every pass: the same network."""
    net, larger = lively(MViT(arch)), MViT(arch, img_size=96).eval()
    larger.load_state_dict(larger.convert(net.state_dict(), larger))
    assert sum(p.numel() for p in larger.parameters()) > sum(p.numel() for p in net.parameters())
    x = torch.randn(1, 3, 96, 96)
    for a, b in zip(larger(x), net(x)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_class_token_is_dropped_for_windows():
    """MViT's weights in MViTv2's windows: its table loses the entry of the class token."""
    net, windows = lively(MViT(V1)), MViT(V1, cls_token=False, windows=True)
    given = windows.convert(net.state_dict(), windows)
    assert torch.equal(given['pos_embed'], net.pos_embed[:, 1:])
    windows.load_state_dict(given)
    assert windows(torch.randn(1, 3, 97, 131))[3].shape == (1, 128, 4, 5)


# The contract's numbers


def test_stages_and_layers():
    with torch.device('meta'):
        net = MViT('mvitv2_tiny')
    assert [net.stage_id(f'blocks.{i}.') for i in range(10)] == [1, 2, 2, *[3] * 5, 4, 4]
    assert net.layer_id('blocks.9.proj.weight') == net.num_layers == 10
    assert (net.stage_id('scale2_norm.bias'), net.layer_id('scale2_norm.bias')) == (5, 11)
    assert {name.rpartition('.')[2] for name in net.no_weight_decay()} == {'rel_pos_h',
                                                                           'rel_pos_w'}
    assert MViT(V1).no_weight_decay() == {'cls_token', 'pos_embed'}


def test_keys_of_the_detection_form():
    """Strides of queries and keys, and windows, of every block, as the sheet lists them."""
    with torch.device('meta'):
        found = [(*block.attn.strides, block.attn.window) for block in MViT('mvitv2_tiny').blocks]
    assert found == [(1, 4, 56), (2, 2, 56), (1, 4, None), (2, 1, 28), *[(1, 1, 14)] * 3,
                     (1, 2, None), (2, 1, 14), (1, 1, None)]


@pytest.mark.parametrize('widen, channels', [('attn', (16, 32, 64, 128)),
                                             ('mlp', (32, 64, 128, 128))])
def test_widths(widen, channels):
    for arch in (V1, V2):
        for out_indices in ((0, 1, 2, 3), (1,)):
            net = MViT(arch, out_indices, widen=widen)
            maps = net(torch.randn(1, 3, 33, 65))
            assert net.out_channels == tuple(y.shape[1] for y in maps)
            assert net.out_channels == tuple(channels[i] for i in out_indices)


@pytest.mark.parametrize('variant, expected', [
    ('mvitv2_base', dict(arch='mvitv2_base', windows=True, out_norm=True)),
    ('mvitv2_small-cls', dict(arch='mvitv2_small', windows=False, out_norm=False)),
    ('mvitv2_large-cls', dict(arch='mvitv2_large_in1k', windows=False, out_norm=False)),
    ('mvit_b_24_conv', dict(arch='mvit_b_24_conv', windows=False, out_norm=False))])
def test_variants(variant, expected):
    assert MViT.reference(variant, (200, 304)) == expected


@pytest.mark.parametrize('overrides, message', [
    (dict(cls_token=True), 'a class token belongs to no window; pass cls_token=False'),
    (dict(widen='mpl'), "no widen 'mpl'; did you mean mlp"),
    (dict(pool='avg'), "no pool 'avg'"),
    (dict(img_size=100), 'img_size must be a multiple of 32, got 100')])
def test_errors(overrides, message):
    with pytest.raises(UserError, match=message):
        MViT('mvitv2_tiny', **overrides)
