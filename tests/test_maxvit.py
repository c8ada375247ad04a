"""What is MaxViT's own: timm's numbers, its partitions token by token, both modes, its tables."""
import math

import pytest
import timm
import torch
import torch.nn.functional as F

from backbones import UserError, create
from backbones.checkpoint import load_pretrained
from backbones.maxvit import MaxViT, PartitionAttention
from backbones.mbconv import Conv, Style, conv_norm

SMALL = dict(stem=32, dims=(32, 64, 96, 128), depths=(1, 2, 1, 1), window=7)
TABLE = 'stages.0.blocks.0.attn_grid.attn.rel_pos.relative_position_bias_table'


def scatter(net):
    """Move what starts at 0 and 1 away from there; tables matter."""
    for name, tensor in net.state_dict().items():
        if name.endswith('running_var') or (tensor.ndim == 1 and name.endswith('weight')):
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            torch.nn.init.normal_(tensor, std=0.2)
        elif name.endswith('_table'):
            torch.nn.init.normal_(tensor)
    return net.eval()


def small(**options):
    torch.manual_seed(0)
    return scatter(MaxViT(SMALL, out_norm=False, **options))


def theirs(**options):
    """timm's port of the official network, as small."""
    torch.manual_seed(1)
    return scatter(timm.create_model(
        'maxvit_tiny_tf_224', embed_dim=SMALL['dims'], depths=SMALL['depths'],
        stem_width=SMALL['stem'], num_classes=10, **options))


def maps(net, x):
    return net.forward_intermediates(x, intermediates_only=True)[1:]


def agree(outputs, expected):
    for output, other in zip(outputs, expected, strict=True):
        assert output.shape == other.shape
        assert (output - other).abs().max() / other.std() < 1e-5


@torch.no_grad()
def test_equals_timm(tmp_path):
    other, net = theirs(img_size=(64, 96)), small(window=(2, 3))
    torch.save(other.state_dict(), tmp_path / 'maxvit.pth')
    own = len(net.state_dict())
    report = load_pretrained(net, tmp_path / 'maxvit.pth')
    assert report.startswith(f'loaded {own} of {own} tensors, 100.0% of the parameters')
    x = torch.randn(2, 3, 64, 96)
    agree(net(x), maps(other, x))


@torch.no_grad()
def test_windows_that_stay():
    """Where 7 divides every map, mode 'pad' is timm's network with windows of 7 x 7, at 448
    another one than 'scale', at 224 the same."""
    other = theirs(img_size=448, transformer_window_size=(7, 7))
    pad, scale = small(mode='pad'), small()
    pad.load_state_dict(pad.convert(other.state_dict(), pad), strict=False)
    scale.load_state_dict(pad.state_dict())
    x = torch.randn(1, 3, 448, 448)
    agree(pad(x), maps(other, x))
    assert not torch.allclose(pad(x)[0], scale(x)[0], atol=0.1)
    agree(pad(x[..., :224, :224]), scale(x[..., :224, :224]))


def textbook(module, x, window, which):
    """Attention of one H x W x C map, token by token, without padding anything."""
    height, width, channels = x.shape
    heads, head = channels // 32, 32
    cell = [math.ceil(side / w) for side, w in zip((height, width), window)]
    table = module.attn.rel_pos.relative_position_bias_table
    members = {}
    for y in range(height):
        for column in range(width):
            apart = [divmod(p, c if which == 'grid' else w)
                     for p, c, w in zip((y, column), cell, window)]
            place, group = zip(*apart) if which == 'grid' else list(zip(*apart))[::-1]
            members.setdefault(group, []).append((y, column, place))
    out = torch.zeros_like(x)
    for tokens in members.values():
        q, k, v = module.attn.qkv(torch.stack([x[y, c] for y, c, _ in tokens])).chunk(3, -1)
        mixed = []
        for h in range(heads):
            part = slice(h * head, (h + 1) * head)
            bias = torch.tensor([[table[h, kp[0] - qp[0] + window[0] - 1,
                                        kp[1] - qp[1] + window[1] - 1]
                                  for *_, kp in tokens] for *_, qp in tokens])
            logits = q[:, part] @ k[:, part].T / head ** 0.5 + bias
            mixed.append(logits.softmax(-1) @ v[:, part])
        for (y, c, _), value in zip(tokens, module.attn.proj(torch.cat(mixed, -1))):
            out[y, c] = value
    return out


@pytest.mark.parametrize('which', ['block', 'grid'])
@pytest.mark.parametrize('size', [(6, 8), (7, 9), (2, 5)])
@torch.no_grad()
def test_partitions_are_the_textbook_ones(which, size):
    window = (3, 4)
    torch.manual_seed(0)
    module = scatter(PartitionAttention(64, window, which, 0.))
    x = torch.randn(2, *size, 64)
    expected = torch.stack([textbook(module, one, window, which) for one in x])
    torch.testing.assert_close(module.attend(x, window), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_scaled_windows():
    """A thirty-second of the padded image, the tables resampled bilinearly; the padding is
    part of the image, and cut off again."""
    net = small()
    other = small(window=(3, 5))
    state = net.state_dict()
    for name in state:
        if name.endswith('_table'):
            state[name] = F.interpolate(state[name][None], (5, 9), mode='bilinear')[0]
    other.load_state_dict(state)
    x = torch.randn(1, 3, 71, 130)
    padded = F.pad(x, (0, 30, 0, 25))
    expected = [y[..., :math.ceil(71 / s), :math.ceil(130 / s)]
                for y, s in zip(other(padded), net.out_strides)]
    agree(net(x), expected)


def test_tables_of_finetuning():
    """Windows of 384 become those of the network at hand, if it is not built for them."""
    state = small(window=12).state_dict()
    expected = F.interpolate(state[TABLE][None], (13, 13), mode='bilinear')[0]
    net = small()
    torch.testing.assert_close(net.convert(state, net)[TABLE], expected)
    net = small(window=12)
    assert torch.equal(net.convert(state, net)[TABLE], state[TABLE])


@pytest.mark.parametrize('size', [(8, 8), (7, 9), (8, 9), (7, 6)])
def test_same_padding(size):
    """TensorFlow's: whatever is odd about the padding goes below and to the right."""
    conv = Conv(3, 4, 3, stride=2, same=True, bias=True)
    x = torch.randn(2, 3, *size)
    total = [max((math.ceil(side / 2) - 1) * 2 + 3 - side, 0) for side in size]
    (above, below), (left, right) = ((t // 2, t - t // 2) for t in total)
    expected = F.conv2d(F.pad(x, (left, right, above, below)), conv.weight, conv.bias, 2)
    torch.testing.assert_close(conv(x), expected)


def test_fixed_norms_are_folded():
    """And stay differentiable: detectors train behind frozen statistics."""
    torch.manual_seed(0)
    conv, norm = Conv(3, 8, 3, 2, same=True, bias=True), scatter(Style().norm(8))
    x = torch.randn(2, 3, 8, 9)
    results = [conv_norm(conv, norm, x), norm(conv(x))]
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
    parameters = [*conv.parameters(), *norm.parameters()]
    grads = [torch.autograd.grad(y.square().sum(), parameters) for y in results]
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)
    before = norm.running_mean.clone()
    norm.train()
    assert torch.equal(conv_norm(conv, norm, x), norm(conv(x)))
    assert not torch.equal(norm.running_mean, before)


def test_drop_path():
    """The authors' rule: the last of N blocks is at (N - 1) / N of the rate."""
    net = small(drop_path_rate=0.5)
    rates = [block.attn_grid.drop_path.drop_prob for stage in net.stages
             for block in stage['blocks']]
    assert rates == pytest.approx([0., 0.1, 0.2, 0.3, 0.4])


def test_mistakes():
    with pytest.raises(UserError, match="no mode 'padd'; did you mean pad"):
        create('maxvit_tiny', mode='padd')
    with pytest.raises(UserError, match='heads of 32 channels; 48 are no multiple'):
        create('maxvit_tiny', dims=(48, 96, 192, 384))
