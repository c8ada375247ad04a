"""HaloNet: its attention by the formula and by timm's module, its networks against timm's."""
import math

import pytest
import timm
import torch
import torch.nn.functional as F

from backbones import UserError, create
from backbones.halonet import ARCHS, HaloAttention, HaloNet
from suite import parity
from suite.attention import case, compare
from suite.attention.halonet import textbook

SMALL = {**ARCHS['halonet_h7'], 'depths': (1, 1, 2, 1), 'dims': (16, 16, 24, 32),
         'mids': (16, 16, 16, 16), 'heads': (2, 2, 2, 2), 'block': 4, 'halo': 1, 'final': 40}


def attention(stride=1, block=4, halo=1, dim_head=None, value_ratio=1.):
    torch.manual_seed(0)
    layer = HaloAttention(8, stride, 2, block, halo, dim_head, 1., value_ratio)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def naive(layer, x):
    """One query, one head, one key at a time, of a map of 1 x C x H x W."""
    block, halo, heads = layer.block, layer.halo, layer.heads
    _, _, height, width = x.shape
    step = 1 if layer.stride == 1 or block % 2 else 2
    unit = math.lcm(block, layer.stride)
    tall, wide = (side + -side % unit for side in (height, width))
    x = F.pad(x, (0, wide - width, 0, tall - height))
    q = F.conv2d(x, layer.q.weight)[0].unflatten(0, (heads, -1))
    kv = F.conv2d(x, layer.kv.weight)[0].unflatten(0, (heads, -1))
    depth, window = q.shape[1], block + 2 * halo
    out = torch.zeros(heads, kv.shape[1] - depth, tall // step, wide // step)
    for y in range(0, tall, step):
        for x in range(0, wide, step):
            top, left = y - y % block - halo, x - x % block - halo
            row, column = y % block // step, x % block // step
            for head in range(heads):
                query, logits, values = q[head, :, y, x], [], []
                for i in range(window):
                    for j in range(window):
                        inside = 0 <= top + i < tall and 0 <= left + j < wide
                        pixel = (kv[head, :, top + i, left + j] if inside
                                 else torch.zeros(kv.shape[1]))
                        offset = (layer.pos_embed['height_rel'][i - row + window - 1]
                                  + layer.pos_embed['width_rel'][j - column + window - 1])
                        logits.append(query @ (pixel[:depth] * depth ** -0.5 + offset))
                        values.append(pixel[depth:])
                out[head, :, y // step, x // step] = (torch.stack(logits).softmax(0)
                                                      @ torch.stack(values))
    out = out.flatten(0, 1)[None]
    out = F.avg_pool2d(out, 2) if step < layer.stride else out
    return out[..., :-(-height // layer.stride), :-(-width // layer.stride)]


@pytest.mark.parametrize('options', [
    dict(), dict(stride=2), dict(block=3, stride=2), dict(block=3, halo=1),
    dict(halo=2, dim_head=3), dict(value_ratio=2.5)], ids=str)
def test_attention_is_the_formula_at_any_size(options):
    layer, x = attention(**options), torch.randn(1, 8, 5, 7)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), naive(layer, x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('stride, block', [(1, 4), (2, 4), (2, 3), (1, 3)])
def test_gradients_are_those_of_the_textbook_form(stride, block):
    layer, x = attention(stride, block), torch.randn(2, 8, 12, 24, requires_grad=True)
    inputs = [x, *layer.parameters()]
    expected, found = textbook(layer)(x), layer(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    out_grad = torch.randn_like(found)
    pairs = zip(*(torch.autograd.grad(out, inputs, out_grad) for out in (found, expected)))
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_ours_equals_the_textbook_form_and_takes_less_memory():
    found = compare(case('halonet', 192, 256), repeats=1)
    assert found.difference < 1e-3  # gradients of parameters are sums over all positions
    assert found.memory_forward < 1 / 2
    assert found.memory_both < 0.8


@pytest.mark.parametrize('name, side', [
    ('halonet26t', 256), ('halonet50ts', 256), ('sehalonet33ts', 256), ('eca_halonext26ts', 256),
    ('haloregnetz_b', 224), ('halonet_h1', 256)])
def test_timms_networks(name, side):
    theirs = timm.create_model(name, num_classes=10).eval()
    state = {key: parity.fill(key, tensor.shape) for key, tensor in theirs.state_dict().items()
             if tensor.is_floating_point()}
    theirs.load_state_dict(state, strict=False)
    ours = HaloNet(name, final_conv=True).eval()
    missing = ours.load_state_dict(ours.convert(state, ours), strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith('num_batches_tracked') for key in missing.missing_keys)
    x = parity.image(side, side)
    with torch.no_grad():
        expected = theirs.forward_features(x)
        found = ours(x)[-1]
    assert (found - expected).abs().max() < 1e-4 * expected.std()


def test_final_convolution_is_an_option(tmp_path):
    whole, bare = HaloNet(SMALL, final_conv=True).eval(), HaloNet(SMALL).eval()
    assert whole.out_channels == (16, 16, 24, 40) and bare.out_channels == (16, 16, 24, 32)
    assert whole.layer_id('final_conv.bn.weight') == whole.num_layers + 1
    assert not [name for name in HaloNet(SMALL, out_indices=(2,), final_conv=True).state_dict()
                if name.startswith('final')]
    path = tmp_path / 'halonet.pth'
    torch.save({**whole.state_dict(), 'head.fc.weight': torch.zeros(10, 40)}, path)
    bare.init_cfg = dict(type='Pretrained', checkpoint=path)
    bare.init_weights()
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = bare(x)
        torch.testing.assert_close(whole.final_conv(maps[-1]), whole(x)[-1])


def test_drop_path_grows_with_every_block():
    with torch.device('meta'):
        net = create('halonet50ts', drop_path_rate=0.15)
    rates = [getattr(block.drop_path, 'drop_prob', 0.) for stage in net.stages for block in stage]
    assert rates == pytest.approx([0.01 * number for number in range(16)])


def test_mistakes():
    with pytest.raises(UserError, match='halo of 3 is more than half of a block of 4'):
        create('halonet_h0', block=4)
    with pytest.raises(UserError, match="no stem 'deep'.*Known: 3x3, 7x7, tiered, tiered_pool"):
        create('halonet_h0', stem='deep')
