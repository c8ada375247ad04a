"""What is MogaNet's own: its formula, its faster equal forms, its numbering."""
import pytest
import torch
import torch.nn.functional as F

from backbones import UserError
from backbones.checkpoint import load_pretrained
from backbones.moganet import Contrast, DepthwiseConv, MogaNet

SMALL = dict(dims=(16, 24, 32, 16), depths=(1, 2, 1, 1), double_silu=False)


def lively(net):
    """Every parameter matters: no scale is near 0, no gain or bias is at its start."""
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, 0.2, 0.3)
    return net


@pytest.fixture
def net():
    torch.manual_seed(0)
    return lively(MogaNet(SMALL, drop_path_rate=0.))


def textbook_depthwise(conv, x):
    return F.conv2d(x, conv.weight, conv.bias, 1, conv.padding, conv.dilation, conv.groups)


def textbook_block(block, x, times):
    """A block as the sheet has it: one operation after the other, no sum folded."""
    attn, mlp = block.attn, block.mlp

    def silu(x):
        for _ in range(times):
            x = x * x.sigmoid()
        return x

    n = block.norm1(x)
    y = attn.proj_1(n)
    y = F.silu(y + attn.sigma.scale * (y - y.mean((2, 3), keepdim=True)))
    orders = attn.value
    t = textbook_depthwise(orders.DW_conv0, y)
    eighth = t.shape[1] // 8
    t = torch.cat([t[:, :eighth],
                   textbook_depthwise(orders.DW_conv1, t[:, eighth:4 * eighth]),
                   textbook_depthwise(orders.DW_conv2, t[:, 4 * eighth:])], 1)
    moga = attn.proj_2(silu(attn.gate(y)) * silu(orders.PW_conv(t)))
    x = x + block.layer_scale_1 * (moga + n)
    z = F.gelu(textbook_depthwise(mlp.dwconv, mlp.fc1(block.norm2(x))))
    z = z + mlp.sigma.scale * (z - F.gelu(mlp.decompose(z)))
    return x + block.layer_scale_2 * mlp.fc2(z)


def textbook(net, x, times=1):
    outputs = []
    for stage in (1, 2, 3, 4):
        x = net.get_submodule(f'patch_embed{stage}')(x)
        for block in net.get_submodule(f'blocks{stage}'):
            x = textbook_block(block, x, times)
        x = net.get_submodule(f'norm{stage}')(x)
        outputs.append(x)
    return outputs


def gradients(net, maps):
    generator = torch.Generator().manual_seed(1)
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum() for y in maps)
    return torch.autograd.grad(loss, list(net.parameters()))


@pytest.mark.parametrize('double_silu', [False, True])
@pytest.mark.parametrize('size', [(97, 131), (33, 65)])
def test_equals_the_textbook(size, double_silu):
    torch.manual_seed(0)
    net = lively(MogaNet(SMALL, drop_path_rate=0., double_silu=double_silu)).double().train()
    x = torch.randn(2, 3, *size, dtype=torch.double)
    ours, expected = net(x), textbook(net, x, times=1 + double_silu)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert (ours[0] - textbook(net, x, times=2 - double_silu)[0]).abs().max() > 0.01
    for a, b in zip(gradients(net, ours), gradients(net, expected)):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('size', [(1, 1), (2, 5), (7, 10), (9, 12), (25, 13)])
@pytest.mark.parametrize('side, dilation', [(5, 1), (5, 2), (7, 3)])
def test_dilated_convolution(side, dilation, size, layout):
    """Phase by phase it is the same convolution, also where a map is smaller than a step."""
    conv = DepthwiseConv(6, side, dilation)
    x = torch.randn(2, 6, *size).to(memory_format=layout).requires_grad_()
    ours, expected = conv(x), textbook_depthwise(conv, x)
    torch.testing.assert_close(ours, expected)
    direction = torch.randn_like(expected)
    inputs = [x, conv.weight, conv.bias]
    for a, b in zip(*(torch.autograd.grad(y, inputs, direction) for y in (ours, expected))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_contrast_before_a_convolution():
    contrast, conv = lively(Contrast(6)), torch.nn.Conv2d(6, 4, 1)
    x, common = torch.randn(2, 6, 5, 7), torch.randn(2, 1, 5, 7)
    torch.testing.assert_close(contrast.then(conv, x, common), conv(contrast(x, common)))


@pytest.mark.parametrize('arch', ['xtiny', 'large'])
def test_layers_are_the_authors(arch):
    """The ids of their detection code, as the spec sheet lists them."""
    with torch.device('meta'):
        net = MogaNet(arch)
    known = {'patch_embed1': {0}, 'blocks1': {2}, 'patch_embed2': {3}, 'blocks2': {3},
             'patch_embed3': {4}, 'patch_embed4': {12}, 'blocks4': {12},
             'blocks3': {min(3 + block // 2, 11) for block in range(net.depths[2])},
             **{f'norm{stage}': {13} for stage in (1, 2, 3, 4)}}
    found = {}
    for name, _ in net.named_parameters():
        found.setdefault(name.partition('.')[0], set()).add(net.layer_id(name))
    assert found == known
    late = net.depths[2] - 1
    assert net.layer_id('blocks3.3.attn.gate.weight') == 4
    assert net.layer_id(f'blocks3.{late}.norm1.bias') == (11 if arch == 'large' else 7)


def test_stages(net):
    assert [net.stage_id(f'{name}.') for name in (
        'patch_embed1', 'blocks1', 'norm1', 'patch_embed2', 'blocks2.1.drop_path', 'norm4')
    ] == [0, 1, 1, 2, 2, 4]


def test_only_chosen_parts():
    names = {name.partition('.')[0] for name, _ in MogaNet(SMALL, (1,)).named_parameters()}
    # The norms of earlier stages stand in the way of the map, not beside it.
    assert names == {'patch_embed1', 'blocks1', 'norm1', 'patch_embed2', 'blocks2', 'norm2'}


def test_scales_take_no_weight_decay(net):
    names = {name.partition('.')[2] for name in net.no_weight_decay()
             if name.startswith('blocks3.')}
    assert names == {'0.layer_scale_1', '0.layer_scale_2', '0.attn.sigma.scale',
                     '0.mlp.sigma.scale'}


def test_official_checkpoint(net, tmp_path):
    state = {**net.state_dict(), 'head.weight': torch.randn(10, 16), 'head.bias': torch.randn(10)}
    average = {name: tensor + 1 for name, tensor in state.items()}
    torch.save(dict(state_dict=state, state_dict_ema=average, epoch=300), tmp_path / 'net.pth.tar')
    fresh = MogaNet(SMALL)
    for key, expected in ((None, state), ('state_dict_ema', average)):
        report = load_pretrained(fresh, tmp_path / 'net.pth.tar', key)
        count = len(state) - 2
        assert f'loaded {count} of {count} tensors, 100.0% of the parameters' in report
        assert all(torch.equal(tensor, expected[name])
                   for name, tensor in fresh.state_dict().items())


def test_odd_widths_are_refused():
    with pytest.raises(UserError, match=r'dims must be multiples of 8, got \(16, 20, 32, 16\)'):
        MogaNet(SMALL, dims=(16, 20, 32, 16))
