"""STT, our reconstruction: its windows token by token and without padding, what crosses them,
the size that it was fitted to."""
import math
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import stirred

from backbones import UserError, stt
from backbones.stt import STT, GlobalBlock, LocalBlock
from suite import published

SMALL = dict(dim=16, depths=(3, 2, 2, 2), heads=2, window=3, order='LG', layer_scale=1.)


def ready(module):
    """In float64, where equal means equal, with every parameter away from 0 and 1."""
    return stirred(module).double()


def noise(*shape):
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(3))


def places(size, window):
    """Window -> the rows and columns of its patches, in the order of windows."""
    members = defaultdict(list)
    for y in range(size[0]):
        for x in range(size[1]):
            members[y // window, x // window].append((y, x))
    return [members[key] for key in sorted(members)]


def textbook_block(block, t):
    """Pre-norm attention and MLP of one sequence, one head after the other. N x C."""
    qkv = F.linear(block.norm1(t), block.qkv.weight, block.qkv.bias)
    heads = [(q @ k.T / math.sqrt(q.shape[1])).softmax(1) @ v
             for q, k, v in zip(*(part.chunk(block.heads, 1) for part in qkv.chunk(3, 1)))]
    t = t + block.ls1.gamma * F.linear(torch.cat(heads, 1), block.proj.weight, block.proj.bias)
    hidden = F.gelu(block.mlp.fc1(block.norm2(t)))
    return t + block.ls2.gamma * block.mlp.fc2(hidden)


def textbook_local(block, supers, x):
    """Windows of as many patches as there are: nothing is padded, nothing masked."""
    conv = block.cpe
    x = x + F.conv2d(x.permute(2, 0, 1), conv.weight, conv.bias, padding=1,
                     groups=x.shape[2]).permute(1, 2, 0)
    supers, out = supers.clone(), x.clone()
    for window, members in enumerate(places(x.shape[:2], block.window)):
        t = textbook_block(block, torch.stack([supers[window], *(x[at] for at in members)]))
        supers[window] = t[0]
        for at, patch in zip(members, t[1:]):
            out[at] = patch
    return supers, out


def textbook(net, image):
    """The four maps of one image."""
    x = image[None]
    for i in range(0, 12, 3):
        conv, norm = net.stem.proj[i:i + 2]
        x = norm(F.conv2d(x, conv.weight, None, 2, padding=1))
        x = F.gelu(x) if i < 9 else x
    x = x[0].permute(1, 2, 0)
    supers = torch.stack([net.super_token[0, 0] + torch.stack([x[at] for at in members]).mean(0)
                          for members in places(x.shape[:2], net.window)])
    taps = []
    for stage, norm in zip(net.stages, (net.norm0, net.norm1, net.norm2, net.norm3)):
        for block in stage['blocks']:
            if isinstance(block, LocalBlock):
                supers, x = textbook_local(block, supers, x)
            else:
                supers = textbook_block(block, supers)
        taps.append(norm(x).permute(2, 0, 1)[None])

    def up(conv, y):
        return F.conv_transpose2d(y, conv.weight, conv.bias, 2)

    twice, norm, _, again = net.pyramid.scales[0]
    levels = [up(again, F.gelu(norm(up(twice, taps[0])))), up(net.pyramid.scales[1][0], taps[1]),
              taps[2], F.max_pool2d(taps[3], 2, ceil_mode=True)]
    sizes = [[-(-side // stride) for side in image.shape[1:]] for stride in (4, 8, 16, 32)]
    return [y[0, :, :height, :width] for y, (height, width) in zip(levels, sizes)]


@pytest.mark.parametrize('size', [(97, 131), (33, 65), (96, 144), (200, 50)])
@torch.no_grad()
def test_network_is_the_textbook(size):
    net = ready(STT(SMALL))
    images = noise(2, 3, *size)
    maps = net(images)
    for number, image in enumerate(images):
        for y, expected in zip(maps, textbook(net, image), strict=True):
            torch.testing.assert_close(y[number], expected)


@pytest.mark.parametrize('size', [(3, 6), (1, 1), (2, 5), (7, 3), (4, 10)])
@torch.no_grad()
def test_windows_are_the_textbook(size):
    block = ready(LocalBlock(8, 2, 1., 0., window=3))
    windows = len(places(size, 3))
    supers, x = noise(2, windows, 8), noise(2, *size, 8)
    real = stt.real_tokens(size, 3, x.device)
    assert (real is None) == (size == (3, 6))
    keys = None if real is None else F.pad(real, (1, 0), value=True).repeat(2, 1)
    outputs = block(supers, x, keys)
    for image in range(2):
        for y, expected in zip(outputs, textbook_local(block, supers[image], x[image])):
            torch.testing.assert_close(y[image], expected)


def test_real_tokens():
    real = stt.real_tokens((4, 5), 3, torch.device('cpu'))
    assert real.dtype == torch.bool and real.sum(1).tolist() == [9, 6, 3, 2]
    assert real[3].tolist() == [True, True] + [False] * 7
    assert stt.real_tokens((6, 3), 3, torch.device('cpu')) is None


@torch.no_grad()
def test_what_fills_up_a_window_does_not_matter(monkeypatch):
    block = ready(LocalBlock(8, 2, 1., 0., window=3))
    supers, x = noise(2, 6, 8), noise(2, 4, 7, 8)
    keys = F.pad(stt.real_tokens((4, 7), 3, x.device), (1, 0), value=True).repeat(2, 1)
    expected = block(supers, x, keys)
    unmasked = block(supers, x, None)
    monkeypatch.setattr(stt, 'pad_to_multiple',
                        lambda x, _: F.pad(x, (0, 0, 0, 2, 0, 2), value=9.))
    for y, other, wrong in zip(block(supers, x, keys), expected, unmasked):
        torch.testing.assert_close(y, other)
        assert not torch.allclose(y, wrong)


@pytest.mark.parametrize('size, masked', [((96, 144), False), ((96, 145), True)])
@torch.no_grad()
def test_masks_are_small_or_none(monkeypatch, size, masked):
    """A row per window, no matrix; and none at all where nothing is padded."""
    masks = []
    attend = F.scaled_dot_product_attention

    def spy(q, k, v, mask=None):
        masks.append(mask)
        return attend(q, k, v, mask)

    monkeypatch.setattr(F, 'scaled_dot_product_attention', spy)
    STT(SMALL).eval()(torch.randn(2, 3, *size))
    of_local, of_global = masks[::2], masks[1::2]
    assert len(of_local) == 5 and of_global == [None] * 4
    if masked:
        assert {(mask.dtype, mask.shape) for mask in of_local} == {
            (torch.bool, torch.Size([2 * 2 * 4, 1, 1, 10]))}
    else:
        assert of_local == [None] * 5


@torch.no_grad()
def test_super_tokens_carry_what_crosses_windows():
    local, across, again = (ready(block) for block in (
        LocalBlock(8, 2, 1., 0., window=3), GlobalBlock(8, 2, 1., 0.),
        LocalBlock(8, 2, 1., 0., window=3)))
    for block in (local, again):
        torch.nn.init.zeros_(block.cpe.weight)
    start = noise(1, 2, 8), noise(1, 3, 6, 8)
    touched = start[0], start[1].clone()
    touched[1][:, 0, 0] += noise(8)  # in the first window
    changes = []
    for block in (local, across, again):
        start, touched = block(*start, None), block(*touched, None)
        (supers, x), (supers_, x_) = start, touched
        changes.append([not torch.equal(a, b) for a, b in [
            (supers[:, 0], supers_[:, 0]), (supers[:, 1], supers_[:, 1]),
            (x[:, :, :3], x_[:, :, :3]), (x[:, :, 3:], x_[:, :, 3:])]])
    assert changes == [[True, False, True, False], [True, True, True, False], [True] * 4]


# Variants


def kinds(net):
    return [''.join('L' if isinstance(block, LocalBlock) else 'G' for block in stage['blocks'])
            for stage in net.stages]


@pytest.mark.parametrize('order, expected, layers', [
    ('LG', ['LGL', 'GL', 'GL', 'GL'], 9),
    ('LLG', ['LLG', 'LL', 'GL', 'L'], 8),
    ('L', ['LLL', 'LL', 'LL', 'LL'], 9),
    ('LLLLGGGGG', ['LLL', 'L', '', ''], 4),  # as in the abstract
])
def test_order(order, expected, layers):
    net = STT(SMALL, order=order)
    assert kinds(net) == expected
    assert net.num_layers == layers == sum(net.depths)
    sum(y.square().sum() for y in net(torch.randn(2, 3, 64, 96))).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize('order', ['', 'GL', 'LXG', 'lg', 5])
def test_wrong_order(order):
    with pytest.raises(UserError, match=f'order must be .* starts with L, got {order!r}'):
        STT(order=order)


@torch.no_grad()
def test_last_only():
    net = ready(STT(SMALL, last_only=True))
    x = noise(2, 3, 97, 131)
    maps = net(x)
    for level, channels in enumerate(net.out_channels):
        one = STT(SMALL, last_only=True, out_indices=(level,)).double().eval()
        assert kinds(one) == kinds(net) and channels == 16
        state = {name.replace(f'scales.{level}.', 'scales.0.'): tensor
                 for name, tensor in net.state_dict().items()
                 if not name.startswith('pyramid.') or f'scales.{level}.' in name}
        one.load_state_dict({name: state[name] for name in one.state_dict()})
        torch.testing.assert_close(one(x)[0], maps[level])
    plain = ready(STT(SMALL))
    plain.load_state_dict(net.state_dict())
    assert [torch.equal(a, b) for a, b in zip(plain(x), maps)] == [False, False, False, True]


def test_size_is_the_published():
    with torch.device('meta'):
        net = STT('s25', out_indices=(3,))

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    assert kinds(net) == ['LGLGLGL', *['GLGLGL'] * 3]
    assert count(net.stem) == 873_648
    assert count(net.stages) == 44_430_720
    assert count(net) == 45_305_520
    # A class token, two layers of class attention, a linear layer.
    classifier = 384 + 2 * (12 * 384 ** 2 + 15 * 384) + 1000 * (384 + 1)
    assert count(net) + classifier == 49_241_368
    assert published.read('STT')['networks']['s25']['parameters'] == 49


def test_is_called_a_reconstruction():
    assert STT.reconstruction and 'our reconstruction' in stt.__doc__.splitlines()[0]
    configs = sorted((Path(__file__).parent.parent / 'configs' / 'stt').glob('*coco*.py'))
    configs += (Path(__file__).parent.parent / 'configs' / 'stt').glob('*ade20k.py')
    assert len(configs) == 5
    assert all('our reconstruction.' in path.read_text().splitlines()[0] for path in configs)


# Training


def test_stages_and_layers():
    """The pyramid learns with the outputs; only its norm is frozen, with its own stage."""
    net = STT(SMALL, frozen_stages=2).train()
    ids = {'stem.proj.0.weight': (0, 0), 'super_token': (0, 0),
           'stages.0.blocks.2.cpe.weight': (1, 3), 'stages.3.blocks.1.qkv.bias': (4, 9),
           'norm0.weight': (5, 10), 'pyramid.scales.0.0.weight': (5, 10),
           'pyramid.scales.0.1.weight': (1, 10), 'pyramid.scales.1.0.bias': (5, 10)}
    assert {name: (net.stage_id(name), net.layer_id(name)) for name in ids} == ids
    scale = net.pyramid.scales[0]
    assert scale[0].weight.requires_grad and not scale[1].weight.requires_grad
    assert net.pyramid.training and not scale[1].training
    assert STT(SMALL, last_only=True).stage_id('pyramid.scales.0.1.bias') == 4
    assert STT(SMALL, frozen_stages=0).train().pyramid.scales[0][1].training


def test_no_weight_decay():
    net = STT(SMALL)
    names = net.no_weight_decay()
    assert len(names) == 1 + 2 * 9
    assert {'super_token', 'stages.1.blocks.1.ls2.gamma'} <= names


def test_drop_path_is_constant():
    net = STT(SMALL, drop_path_rate=0.25)
    assert {block.drop_path.drop_prob for stage in net.stages for block in stage['blocks']} == {
        0.25}


def test_drop_path_drops_whole_images():
    """Of an image either all windows lose a branch or none does."""
    torch.manual_seed(0)
    block = ready(LocalBlock(8, 2, 1., 0.5, window=3)).train()
    torch.nn.init.zeros_(block.ls2.gamma)
    torch.nn.init.zeros_(block.cpe.weight)
    torch.nn.init.zeros_(block.cpe.bias)
    supers, x = noise(16, 2, 8), noise(16, 3, 6, 8)
    new_supers, new_x = block(supers, x, None)
    kept = (new_x != x).flatten(1)
    assert 0 < kept.all(1).sum() < 16
    assert torch.equal(kept.all(1), kept.any(1))
    assert torch.equal(kept.all(1), (new_supers != supers).flatten(1).any(1))
