"""What is FCViT's own: its formula, its convolutions' way back, its checkpoints."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backbones import UserError
from backbones.checkpoint import load_pretrained
from backbones.fcvit import FCViT, GlobalContext
from backbones.layers import DepthwiseConv2d

SMALL = dict(dims=(16, 24, 40, 32), depths=(1, 2, 1, 1), mlp_ratios=(3, 2, 1, 2), kernel=11)


def lively(net):
    """Every parameter matters: none is near its start."""
    for parameter in net.parameters():
        nn.init.normal_(parameter, 0.1, 0.2)
    return net


@pytest.fixture
def net():
    torch.manual_seed(0)
    return lively(FCViT(SMALL, drop_path_rate=0.))


def gradients(tensors, inputs):
    generator = torch.Generator().manual_seed(1)
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum()
               for y in tensors)
    return torch.autograd.grad(loss, list(inputs))


# The network


def textbook_norm(norm, x):
    """Over channels and map; x is one image, C x H x W."""
    y = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt()
    return y * norm.weight[:, None, None] + norm.bias[:, None, None]


def textbook_context(gc, x):
    """Head by head; statistics over all heads and pixels, deviation by n - 1."""
    channels, height, width = x.shape
    size = channels // 8
    mean = x.mean((1, 2))
    rows = [torch.einsum('chw,c->hw', x[k * size:(k + 1) * size], mean[k * size:(k + 1) * size])
            / size ** 0.5 for k in range(8)]
    every = torch.cat([row.flatten() for row in rows])
    centre = every.sum() / len(every)
    deviation = ((every - centre).square().sum() / (8 * height * width - 1)).sqrt()
    hidden = gc.fc1.weight @ mean + gc.fc1.bias
    first, second = hidden[:channels // 8], hidden[channels // 8:]
    context = gc.fc2.weight @ torch.where(first > second, first, second) + gc.fc2.bias
    maps = []
    for channel in range(channels):
        k = channel // size
        weight = (rows[k] - centre) / (deviation + 1e-5)
        maps.append((weight * gc.rescale_weight[k] + gc.rescale_bias[k]) * context[channel])
    return torch.stack(maps)


def textbook_block(block, x):
    def conv(layer, x):
        return F.conv2d(x[None], layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2,
                        groups=layer.groups)[0]

    def gelu(x):
        return x * 0.5 * (1 + torch.erf(x / 2 ** 0.5))

    t, c = block.token_mixer, block.channel_mixer
    y = textbook_norm(block.norm1, x)
    for gc, dw, pw in ((t.gc1, t.dw1, t.fc1), (t.gc2, t.dw2, t.fc2)):
        y = conv(dw, y + textbook_context(gc, y))
        y = gelu(conv(pw[2], gelu(conv(pw[0], y))))
    x = x + block.layer_scale_1[:, None, None] * y
    y = conv(c.dwconv, conv(c.fc1, textbook_norm(block.norm2, x)))
    return x + block.layer_scale_2[:, None, None] * conv(c.fc2, gelu(y))


def textbook(net, x):
    outputs = []
    x = net.patch_embed(x)
    for i, part in enumerate(net.network):
        if i % 2:
            x = part(x)
            continue
        for block in part:
            x = torch.stack([textbook_block(block, image) for image in x])
        norm = net.get_submodule(f'norm{i}')
        outputs.append(torch.stack([textbook_norm(norm, image) for image in x]))
    return outputs


@pytest.mark.parametrize('size', [(65, 43), (33, 35)])
def test_equals_the_textbook(net, size):
    net = net.double().train()
    x = torch.randn(2, 3, *size, dtype=torch.double)
    ours, expected = net(x), textbook(net, x)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    for a, b in zip(gradients(ours, net.parameters()), gradients(expected, net.parameters())):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_context_of_a_black_map():
    """All pixels alike: no deviation to divide by."""
    gc = GlobalContext(16)
    y = gc(torch.zeros(2, 16, 5, 7))
    assert y.isfinite().all()
    assert all(grad.isfinite().all() for grad in gradients([y], gc.parameters()))


# The wide convolution


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('size', [(1, 1), (2, 3), (1, 40), (9, 5), (31, 17)])
@pytest.mark.parametrize('side, bias', [(3, True), (5, True), (7, False), (11, True)])
def test_depthwise_convolution(side, bias, size, layout):
    """Also where the map is smaller than the kernel or its margin."""
    torch.manual_seed(0)
    conv = DepthwiseConv2d(6, side, bias)
    x = torch.randn(3, 6, *size).to(memory_format=layout).requires_grad_()
    ours, plain = conv(x), nn.Conv2d.forward(conv, x)
    torch.testing.assert_close(ours, plain)
    inputs = [x, *conv.parameters()]
    for a, b in zip(gradients([ours], inputs), gradients([plain], inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_depthwise_convolution_twice_differentiated():
    conv = DepthwiseConv2d(2, 5).double()
    x = torch.randn(2, 2, 4, 3, dtype=torch.double, requires_grad=True)
    inputs = x, conv.weight, conv.bias

    def function(x, weight, bias):
        return torch.func.functional_call(conv, dict(weight=weight, bias=bias), x)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize('frozen', ['x', 'weight', 'bias'])
def test_depthwise_convolution_partly_frozen(frozen):
    conv, x = DepthwiseConv2d(4, 7), torch.randn(1, 4, 6, 9, requires_grad=True)
    tensors = dict(x=x, weight=conv.weight, bias=conv.bias)
    tensors[frozen].requires_grad_(False)
    conv(x).sum().backward()
    assert [name for name, tensor in tensors.items() if tensor.grad is None] == [frozen]


def test_depthwise_convolution_under_autocast():
    conv, x = DepthwiseConv2d(8, 11), torch.randn(2, 8, 20, 13, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    inputs = [x, conv.weight, conv.bias]
    for a, b in zip(gradients([y], inputs), gradients([nn.Conv2d.forward(conv, x)], inputs)):
        assert a.dtype == torch.float32
        assert (a - b).norm() < 0.02 * b.norm()


# Names and numbers


def official(net):
    """As timm's training script saves it: a norm and a classifier in place of our norms."""
    state = {name: tensor for name, tensor in net.state_dict().items()
             if not name.startswith('norm')}
    last = {f'norm.{leaf}': torch.randn(32) for leaf in ('weight', 'bias')}
    return dict(epoch=300, state_dict={**state, **last, 'head.weight': torch.zeros(10, 32),
                                       'head.bias': torch.zeros(10)})


def test_checkpoint(net, tmp_path):
    torch.save(official(net), tmp_path / 'net.pth.tar')
    fresh = FCViT(SMALL)
    assert '100.0% of the parameters' in load_pretrained(fresh, tmp_path / 'net.pth.tar')
    for name, tensor in fresh.state_dict().items():
        expected = net.state_dict()[name]
        if name.startswith('norm'):
            expected = torch.full_like(expected, name.endswith('weight'))
        assert torch.equal(tensor, expected), name


def test_checkpoint_of_another_kernel(net, tmp_path):
    torch.save(official(FCViT(SMALL, kernel=9)), tmp_path / 'net.pth.tar')
    with pytest.raises(UserError, match='kernels of 9 pixels, the network of 11; .* kernel=9'):
        load_pretrained(net, tmp_path / 'net.pth.tar')
    assert '100.0%' in load_pretrained(FCViT(SMALL, kernel=9), tmp_path / 'net.pth.tar')


def test_checkpoint_without_competition(net):
    with pytest.raises(UserError, match='without competition'):
        net.convert({'network.0.0.token_mixer.gc1.fc.0.weight': torch.zeros(2, 16)}, net)


def test_stages_and_layers(net):
    places = {'patch_embed.proj.bias': (0, 0), 'network.0.0.token_mixer.gc2.fc1.bias': (1, 1),
              'network.1.norm.weight': (2, 2), 'network.2.0.norm1.bias': (2, 2),
              'network.2.1.channel_mixer.dwconv.weight': (2, 3), 'network.3.proj.weight': (3, 4),
              'network.4.0.layer_scale_2': (3, 4), 'network.5.proj.bias': (4, 5),
              'network.6.0.norm2.weight': (4, 5), 'norm2.weight': (5, 6)}
    assert {name: (net.stage_id(name), net.layer_id(name)) for name in places} == places
    assert places.keys() <= dict(net.named_parameters()).keys() and net.num_layers == 5


def test_vectors_take_no_weight_decay(net):
    """As in timm's optimizers, with which ImageNet was trained."""
    blocks = {name for name, parameter in net.named_parameters()
              if parameter.ndim == 1 and name.startswith('network.0.0.')}
    others = ('bias', 'norm1.weight', 'norm2.weight')
    assert {name for name in net.no_weight_decay() if name.startswith('network.0.')} == {
        name for name in blocks if not name.endswith(others) or name.endswith('rescale_bias')}


def test_widths_that_no_head_fits():
    with pytest.raises(UserError, match=r'dims must be multiples of 8, got \(16, 20, 40, 32\)'):
        FCViT(SMALL, dims=(16, 20, 40, 32))
