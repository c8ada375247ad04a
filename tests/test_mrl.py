"""What is the MRL-like network's own (our reconstruction): its block by the sheet, its size, and
that with four orientations it turns as the image does."""
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from networks import stirred
from torch import nn

from backbones import UserError
from backbones.mrl import ARCHS, MRL, Block
from suite.config import load
from suite.optim import LayerDecay

SMALL = dict(dims=(16, 16, 24, 32), depths=(1, 2, 1, 1), heads=(2, 4, 3, 2), orientations=1)


def build(orientations=4, **options):
    """A small network whose every weight matters."""
    return stirred(MRL(SMALL, orientations=orientations, drop_path_rate=0., **options))


def images(height, width):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


# The network of the sheet


@pytest.mark.parametrize('arch, expected', [('tiny', 18_591_936), ('small', 31_499_584)])
def test_parameters(arch, expected):
    dims = 64, 128, 320, 512
    total = 3 * 49 * dims[0] + 3 * dims[0]
    for c, depth, side in zip(dims, ARCHS[arch]['depths'], (8, 4, 2, 1)):
        gather = c * side ** 2 + c if side > 1 else 0
        regional = gather + (c * c + c) + (9 * c + c) + 2 * c + 4 * (c * c + c)
        local = (9 * c + c) + (c * c + c)
        total += depth * (regional + local + (8 * c * c + 5 * c) + 4 * c) + 2 * c
    total += sum(9 * a * b + 3 * b for a, b in zip(dims, dims[1:]))
    with torch.device('meta'):
        net = MRL(arch)
    assert sum(p.numel() for p in net.parameters()) == total == expected


def attention(tokens, attn):
    """One query and one head at a time."""
    q, k, v = F.linear(tokens, attn.qkv.weight, attn.qkv.bias).chunk(3, -1)
    size, out = q.shape[1] // attn.heads, torch.zeros_like(q)
    for part in (slice(h * size, (h + 1) * size) for h in range(attn.heads)):
        for i in range(len(q)):
            weights = (k[:, part] @ q[i, part] / math.sqrt(size)).softmax(0)
            out[i, part] = weights @ v[:, part]
    return F.linear(out, attn.proj.weight, attn.proj.bias)


def neighbours(conv, x):
    """A depthwise 3 x 3 convolution of H x W x C, one neighbour at a time."""
    height, width = x.shape[:2]
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    return conv.bias + sum(conv.weight[:, 0, i, j] * padded[i:i + height, j:j + width]
                           for i in range(3) for j in range(3))


@pytest.mark.parametrize('side', [1, 2, 4])
@pytest.mark.parametrize('height, width', [(9, 7), (8, 4), (3, 5)])
@torch.no_grad()
def test_block_is_the_sheet_s(side, height, width):
    block = stirred(Block(16, 2, side, drop_path=0.))
    x = torch.randn(height, width, 16)
    u, regional, local = block.norm1(x), block.regional, block.local
    rows, columns = math.ceil(height / side), math.ceil(width / side)
    r = torch.zeros(rows, columns, 16)
    for y in range(height):
        for z in range(width):
            weight = regional.gather.weight[:, 0, y % side, z % side] if side > 1 else 1
            r[y // side, z // side] += weight * u[y, z]
    r = regional.proj(r + regional.gather.bias if side > 1 else r)
    r = r + neighbours(regional.pos_embed, r)
    r = r + attention(regional.norm(r).flatten(0, 1), regional.attn).view(r.shape)
    up = torch.stack([torch.stack([r[y // side, z // side] for z in range(width)])
                      for y in range(height)])
    x_1 = x + local.proj(F.gelu(neighbours(local.conv, u + up)))
    expected = x_1 + block.mlp(block.norm2(x_1))
    torch.testing.assert_close(block(x[None])[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('orientations', [1, 4])
def test_attention_is_on_the_grid_of_stride_32(orientations):
    net, grids = build(orientations), []
    for stage in net.stages:
        stage['blocks'][0].regional.attn.register_forward_pre_hook(
            lambda _, inputs: grids.append(tuple(inputs[0].shape[1:3])))
    net(images(97, 131))
    assert grids == [(4, 5)] * 4


# Four orientations


def turned(maps, turns, oriented=True):
    """What an equivariant network makes of an image turned by ``turns`` times 90 degrees."""
    maps = [y.rot90(turns, (2, 3)) for y in maps]
    if oriented:
        maps = [y.unflatten(1, (-1, 4)).roll(turns, 2).flatten(1, 2) for y in maps]
    return maps


def pooled(maps):
    return [y.unflatten(1, (-1, 4)).amax(2) for y in maps]


def furthest(maps, expected):
    """Largest difference on any map, in standard deviations of that map."""
    return max(((y - e).abs().max() / e.std()).item() for y, e in zip(maps, expected, strict=True))


@pytest.mark.parametrize('turns', [1, 2, 3])
@pytest.mark.parametrize('size', [(32, 32), (64, 96), (160, 32)])
@torch.no_grad()
def test_maps_turn_with_the_image(turns, size):
    net, x = build(), images(*size)
    maps, of_turned = net(x), net(x.rot90(turns, (2, 3)))
    assert furthest(of_turned, turned(maps, turns)) < 1e-4
    assert furthest(pooled(of_turned), turned(pooled(maps), turns, oriented=False)) < 1e-4


@torch.no_grad()
def test_orientations_are_told_apart():
    """Maps of four equal orientations, or of isotropic kernels, would turn as well."""
    net, x = build(), images(64, 96)
    maps, of_turned = net(x), net(x.rot90(1, (2, 3)))
    assert furthest(of_turned, turned(maps, 1, oriented=False)) > 0.5
    assert all((y[:, 0::4] - y[:, 1::4]).abs().mean() > 0.1 * y.std() for y in maps)


@pytest.mark.parametrize('orientations, size', [(1, (64, 96)), (4, (97, 131))])
@torch.no_grad()
def test_where_nothing_is_claimed(orientations, size):
    """Ordinary convolutions, and sizes that are padded on two sides."""
    net, x = build(orientations), images(*size)
    maps, of_turned = net(x), net(x.rot90(1, (2, 3)))
    assert furthest(of_turned, turned(maps, 1)) > 0.1
    assert furthest(of_turned, turned(maps, 1, oriented=False)) > 0.1


def test_training_keeps_it():
    torch.manual_seed(0)
    net, x = MRL(orientations=4, drop_path_rate=0.), images(32, 64)
    before, optimizer = copy.deepcopy(net), torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(2):
        loss = sum((y * torch.randn_like(y)).mean() for y in net(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        maps = net(x)
        assert furthest(maps, before(x)) > 0.1
        assert furthest(net(x.rot90(1, (2, 3))), turned(maps, 1)) < 1e-4


@torch.no_grad()
def test_scales_at_the_start_are_those_of_ordinary_layers():
    ordinary, oriented = MRL(), MRL(orientations=4)
    for name in ('stages.2.blocks.0.mlp.fc1', 'stages.0.blocks.0.regional.gather'):
        ours, theirs = oriented.get_submodule(name).weight, ordinary.get_submodule(name).weight
        assert ours.shape == theirs.shape
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.05)


def test_a_quarter_is_learned():
    with torch.device('meta'):
        net = MRL(orientations=4)
    learned = sum(p.numel() for p in net.parameters())
    layers = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.LayerNorm))]
    assert 4 * learned == sum(m.weight.numel() + m.bias.numel() for m in layers)
    assert learned == 5_021_440


def test_contract_with_four_orientations():
    net = build().train()
    for size in [(97, 131), (33, 65)]:
        maps = net(images(*size))
        for y, channels, stride in zip(maps, net.out_channels, net.out_strides):
            assert y.shape == (2, channels, *(math.ceil(side / stride) for side in size))
            assert y.is_contiguous()
    sum(y.square().mean() for y in maps).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    assert {net.stage_id(name) for name, _ in net.named_parameters()} == set(range(6))
    assert {net.layer_id(name) for name, _ in net.named_parameters()} == set(range(7))
    other, checkpointed = MRL(SMALL, orientations=4), build(with_cp=True)
    other.load_state_dict(net.state_dict(), strict=True)
    for again in (other.eval(), checkpointed):
        assert furthest(again(images(33, 65)), maps) < 1e-5
    assert all(p.requires_grad == (net.stage_id(name) > 2)
               for name, p in build(frozen_stages=2).named_parameters())


def test_norms_do_not_decay():
    model = nn.ModuleDict(dict(backbone=MRL(SMALL, orientations=4)))
    constructor = LayerDecay(dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05)))
    groups = constructor(model).optimizer.param_groups
    spared = sum(p.numel() for g in groups if g['weight_decay'] == 0 for p in g['params'])
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert spared == sum(2 * norm.weight.numel() for norm in norms) // 4 > 0


def test_it_is_one_argument():
    cfg = load('configs/mrl/maskrcnn_coco.py', options={'model.backbone.orientations': 4})
    assert cfg.model.backbone.orientations == 4
    assert cfg.model.neck.in_channels == [64, 128, 320, 512]


@pytest.mark.parametrize('settings, message', [
    (dict(orientations=8), 'MRL: orientations must be 1 or 4, got 8'),
    (dict(heads=(3, 4, 3, 2)), '16 channels do not divide into 3 heads of .* 1 orientations'),
    (dict(heads=(8, 4, 3, 2), orientations=4), '16 channels do not divide into 8 heads of'),
])
def test_wrong_settings(settings, message):
    with pytest.raises(UserError, match=message):
        MRL(SMALL, **settings)
