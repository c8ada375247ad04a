"""What is UniNet's own: its two attentions, its flat list, its levels, its checkpoints."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backbones import UserError, create
from backbones.checkpoint import load_pretrained
from backbones.uninet import AttentionBlock, ConvBlock, GlobalDownsample, UniNet

SMALL = dict(dims=(16, 24, 32, 40, 64, 32), depths=(2, 1, 1, 2, 1, 2))


def lively(net):
    """Every parameter matters, and every statistic of a BatchNorm."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, 0.1, 0.2)
    for buffer in net.buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 1.5)
    return net.eval()


# Modules; one position or channel at a time


def norm(layer, x):
    """Over the channels of one position; x is C."""
    y = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
    return y * layer.weight + layer.bias


def attend(q, keys, values):
    """One query of any number of heads of 32 channels each."""
    parts = []
    for start in range(0, len(q), 32):
        head = slice(start, start + 32)
        logits = torch.stack([(q[head] * k[head]).sum() for k in keys]) / 32 ** 0.5
        parts.append((logits.softmax(0)[:, None] * torch.stack(values)[:, head]).sum(0))
    return torch.cat(parts)


def positions(x):
    """C x H x W -> list of C, row by row."""
    return list(x.flatten(1).unbind(1))


def textbook_downsample(net, x, stride):
    weight = net.q[0].weight
    q = F.conv2d(x[None], weight, net.q[0].bias, stride, 1, groups=len(weight))
    q = F.conv2d(net.q[1](q), net.q[2].weight, net.q[2].bias)[0]
    width = q.shape[0]
    keys_values = [net.kv.weight @ norm(net.kv_norm, t) + net.kv.bias for t in positions(x)]
    keys, values = ([t[part] for t in keys_values] for part in (slice(width), slice(width, None)))
    out = torch.stack([net.proj.weight @ attend(norm(net.q_norm, t), keys, values)
                       + net.proj.bias for t in positions(q)], 1).view(q.shape)
    pooled = F.max_pool2d(x, 3, 2, 1) if stride == 2 else x
    skip = net.residual[-1]
    return out + F.conv2d(pooled[None], skip.weight, skip.bias)[0]


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [(5, 7), (1, 2), (4, 3)])
@torch.no_grad()
def test_global_downsample_is_its_description(stride, size):
    net, x = lively(GlobalDownsample(12, 64, stride)), torch.randn(2, 12, *size)
    expected = torch.stack([textbook_downsample(net, image, stride) for image in x])
    torch.testing.assert_close(net(x), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_attention_block_is_its_description():
    net, x = lively(AttentionBlock(64, 2, 1., 0.)), torch.randn(64, 3, 5)
    y = x + F.conv2d(x[None], net.pos_embed.weight, net.pos_embed.bias, padding=1, groups=64)[0]
    tokens = positions(y)
    qkv = [(net.attn.qkv.weight @ norm(net.norm1, t) + net.attn.qkv.bias).chunk(3) for t in tokens]
    _, keys, values = zip(*qkv)
    expected = []
    for token, (q, _, _) in zip(tokens, qkv):
        attended = net.attn.proj.weight @ attend(q, keys, values) + net.attn.proj.bias
        token = token + net.gamma_1 * attended
        hidden = net.mlp.fc1.weight @ norm(net.norm2, token) + net.mlp.fc1.bias
        hidden = hidden * (1 + torch.erf(hidden / 2 ** 0.5)) / 2
        expected.append(token + net.gamma_2 * (net.mlp.fc2.weight @ hidden + net.mlp.fc2.bias))
    expected = torch.stack(expected, 1).view(x.shape)
    torch.testing.assert_close(net(x[None])[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('inputs, outputs, expansion', [(16, 16, 1), (16, 24, 1), (24, 24, 3)])
@torch.no_grad()
def test_conv_block_is_its_description(inputs, outputs, expansion):
    net, x = lively(ConvBlock(inputs, outputs, expansion, 0.)), torch.randn(2, inputs, 5, 7)
    y = x
    if expansion > 1:
        y = F.gelu(net.b1[2](F.conv2d(net.b1[0](y), net.b1[1].weight)))
    y = F.conv2d(y, net.b2[0].weight, padding=1, groups=inputs * expansion)
    y = F.gelu(net.b2[1](y))
    gate = y.mean((2, 3), keepdim=True)
    gate = F.conv2d(gate, net.b2[3].fc1.weight, net.b2[3].fc1.bias).clamp(min=0)
    gate = F.conv2d(gate, net.b2[3].fc2.weight, net.b2[3].fc2.bias)
    y = y * ((gate + 3) / 6).clamp(0, 1)
    y = net.b2[5](F.conv2d(y, net.b2[4].weight, net.b2[4].bias))
    skip = x
    if inputs != outputs:
        skip = F.conv2d(F.max_pool2d(x, 3, 1, 1), net.residual[1].weight, net.residual[1].bias)
    torch.testing.assert_close(net(x), skip + y, atol=1e-5, rtol=1e-5)


def test_conv_blocks_start_as_their_shortcut():
    block, x = ConvBlock(16, 16, 3, 0.), torch.randn(2, 16, 5, 7)
    assert torch.equal(block(x), x)


# The whole


def test_squeezed_widths():
    """To multiples of 8, but not down by more than a tenth: 96 -> 96, 84 -> 88, 20 -> 24."""
    with torch.device('meta'):
        widths = [ConvBlock(dim, dim, expansion, 0.).b2[3].fc1.out_channels
                  for dim, expansion in ((128, 3), (112, 3), (80, 1), (16, 1))]
    assert widths == [96, 88, 24, 8]


def test_places_in_the_flat_list():
    with torch.device('meta'):
        net = create('uninet_b1')
        short = create('uninet_b1', out_indices=(1,))
    joints = {i for i, block in enumerate(net.blocks)
              if not isinstance(block, ConvBlock | AttentionBlock)}
    assert joints == {1, 4, 9, 14, 19} and net.ends == [4, 9, 19, 28] and net.num_layers == 23
    places = {0: (1, 1), 1: (1, 2), 2: (1, 2), 3: (1, 3), 4: (2, 4), 8: (2, 7), 9: (3, 8),
              10: (3, 8), 14: (3, 12), 15: (3, 12), 18: (3, 15), 19: (4, 16), 27: (4, 23)}
    for number, place in places.items():
        name = f'blocks.{number}.gamma_1'
        assert (net.stage_id(name), net.layer_id(name)) == place
    assert (net.layer_id('stem.1.bias'), net.layer_id('norm1.bias')) == (0, 24)
    assert len(short.blocks) == 9 and short.depths == (3, 4) and short.layer_id('norm1.bias') == 8


@torch.no_grad()
def test_outputs_are_the_ends_of_levels():
    """At stride 16 that of the attention blocks, not of the convolutions before them."""
    net, x = UniNet(SMALL, out_norm=False).eval(), torch.randn(1, 3, 97, 131)
    seen = {}
    for number, block in enumerate(net.blocks):
        block.register_forward_hook(lambda _, x, y, number=number: seen.update({number: y}))
    outputs = net(x)
    for output, number in zip(outputs, (3, 5, 10, 13), strict=True):
        assert torch.equal(output, seen[number])
    normed = UniNet(SMALL).eval()
    normed.load_state_dict(net.state_dict(), strict=False)
    for output, raw in zip(normed(x), outputs, strict=True):
        expected = F.layer_norm(raw.permute(0, 2, 3, 1), raw.shape[1:2], eps=1e-6)
        torch.testing.assert_close(output.permute(0, 2, 3, 1), expected)


@pytest.mark.parametrize('key', [None, 'state_dict_ema'])
def test_checkpoint(key, tmp_path):
    torch.manual_seed(0)
    state = {name: torch.randn_like(tensor) if tensor.is_floating_point() else tensor
             for name, tensor in UniNet(SMALL, out_norm=False).state_dict().items()}
    average = {name: tensor + 1 for name, tensor in state.items()}
    rest = {'head.0.weight': torch.zeros(1280, 32, 1, 1), 'head.1.running_var': torch.ones(1280),
            'classifier.bias': torch.zeros(10)}
    torch.save(dict(model={**state, **rest}, state_dict_ema={**average, **rest},
                    optimizer={}), tmp_path / 'net.pth')
    net = UniNet(SMALL)
    report = load_pretrained(net, tmp_path / 'net.pth', key)
    assert f'loaded {len(state)} of {len(state) + 8} tensors, 100.0% of the parameters' in report
    assert all(torch.equal(net.state_dict()[name], tensor)
               for name, tensor in (average if key else state).items())


@pytest.mark.parametrize('options, message', [
    (dict(out_indices=(3, 4)), r'four outputs, out_indices \(3, 4\) ask for more'),
    (dict(dims=(16, 24, 32, 40, 48, 32)), r'last two dims multiples of 32; got \(16, .*, 48, 32\)'),
    (dict(depths=(1, 2, 1, 2)), r'those of six stages, .*, \(1, 2, 1, 2\)'),
])
def test_wrong_settings(options, message):
    with pytest.raises(UserError, match=message):
        UniNet(SMALL, **options)
