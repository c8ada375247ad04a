"""What is CMT's own: biases of positions at any size, their tables in checkpoints."""
import logging

import pytest
import torch
import torch.nn.functional as F
from networks import stirred

from backbones import UserError
from backbones.checkpoint import load_pretrained
from backbones.cmt import CMT, biased_attention, resample
from suite.speed import peak_bytes

SMALL = dict(stem=8, dim=8, depths=(1, 1, 2, 1), ratio=2, img_size=64)


def build(**options):
    """A small network whose every parameter matters."""
    return stirred(CMT(SMALL, **options))


def images(height=97, width=131):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def close(ours, expected):
    for y, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(y, other, atol=1e-4, rtol=1e-4)


# Biases


def interpolated(vector, old, new):
    image = vector.view(1, 1, *old)
    return F.interpolate(image, new, mode='bicubic', align_corners=False).flatten()


@pytest.mark.parametrize('step', [1, 2, 4])
@pytest.mark.parametrize('old, new', [((5, 5), (7, 10)), ((2, 3), (1, 1)), ((3, 2), (3, 2)),
                                      ((4, 3), (4, 5))])
def test_tables_are_resampled_query_by_query_and_key_by_key(old, new, step):
    few, many = ([step * side for side in grid] for grid in (old, new))
    keys = old[0] * old[1]
    table = torch.randn(2, step ** 2 * keys, keys)
    expected = []
    for head in table:
        by_key = torch.stack([interpolated(column, few, many) for column in head.T], 1)
        expected.append(torch.stack([interpolated(row, old, new) for row in by_key]))
    bias, factor = resample(table, old, new)
    torch.testing.assert_close(bias @ factor.T, torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_factors_are_a_mask(dtype):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 20, 5), torch.randn(2, 3, 7, 5), torch.randn(2, 3, 7, 5)
    bias, factor = torch.randn(3, 20, 4), torch.randn(7, 4)
    whole = bias @ factor.T
    expected = (q @ k.transpose(2, 3) * 5 ** -0.5 + whole).softmax(-1) @ v
    atol = 1e-5 if dtype == torch.float32 else 0.05
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    for form in ((whole, None), (bias, factor)):
        out = biased_attention(q, k, v, *form)
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), expected, atol=atol, rtol=0)


@pytest.mark.parametrize('side', [64, 400], ids=['factors', 'mask'])
@torch.no_grad()
def test_resampled_once_or_always_is_the_same(side, caplog):
    """Tables of a checkpoint brought to the images' size, and a network that does so itself."""
    net = build(img_size=side)
    fixed = CMT(SMALL, img_size=(97, 131)).eval()
    with caplog.at_level(logging.INFO, 'backbones'):
        fixed.load_state_dict(fixed.convert(net.state_dict(), fixed))
    assert fixed.relative_pos_b.shape == (2, 16 * 20, 20)
    old = dict([(64, 64), (400, 416)])[side]
    assert f'resampled from {old}x{old} to 128x160 pixels; to keep them as they are, build with ' \
           f'img_size={old}' in caplog.text
    close(net(images()), fixed(images()))


@pytest.mark.parametrize('size', [(97, 131), (33, 32), (64, 64), (40, 90)])
@torch.no_grad()
def test_images_are_padded_and_maps_cropped(size):
    net, x = build(out_norm=False), images(*size)
    height, width = (-(-side // 32) * 32 for side in size)
    padded = torch.zeros(2, 3, height, width)
    padded[:, :, :size[0], :size[1]] = x
    expected = [y[:, :, :-(-size[0] // stride), :-(-size[1] // stride)]
                for y, stride in zip(net(padded), net.out_strides)]
    close(net(x), expected)


def test_no_resampled_table_is_made():
    net, x = build(), torch.randn(1, 3, 256, 1024)
    queries, keys = 256 * 1024 // 16, 256 * 1024 // 1024
    with torch.no_grad():
        assert peak_bytes(lambda: net(x)) < 4 * queries * keys


def test_biases_are_learned_at_other_sizes():
    net = build().train()
    sum(y.square().mean() for y in net(images())).backward()
    for letter in 'abcd':
        assert net.get_parameter(f'relative_pos_{letter}').grad.abs().amin((0, 1)).min() > 0


def test_black_margins_do_not_blow_up_gradients():
    torch.manual_seed(0)
    net, x = CMT(drop_path_rate=0.), images(64, 96)
    x[:, :, 40:] = 0
    sum((y * torch.randn_like(y)).mean() for y in net(x)).backward()
    assert max(parameter.grad.norm() for parameter in net.parameters()) < 10


# Checkpoints


def official(net):
    heads = {'_fc.weight': torch.zeros(10, 64, 1, 1), '_fc.bias': torch.zeros(10),
             '_bn.weight': torch.ones(10), '_bn.num_batches_tracked': torch.tensor(3),
             'head.weight': torch.zeros(10, 10), 'head.bias': torch.zeros(10)}
    return {**net.state_dict(), **heads}


@pytest.mark.parametrize('entry', ['model', 'model_ema', None])
def test_checkpoints(entry, tmp_path, caplog):
    net, path = build(out_norm=False), tmp_path / 'cmt.pth'
    torch.save({entry: official(net)} if entry else official(net), path)
    fresh = CMT(SMALL, out_norm=False).eval()
    with caplog.at_level(logging.INFO, 'backbones'):
        report = load_pretrained(fresh, path)
    assert '100.0% of the parameters' in report and 'not in it' not in report
    assert 'resampled' not in caplog.text
    with torch.no_grad():
        for y, other in zip(fresh(images()), net(images()), strict=True):
            assert torch.equal(y, other)


def test_checkpoint_of_the_first_stages_alone(tmp_path):
    torch.save(official(build()), tmp_path / 'cmt.pth')
    net = CMT(SMALL, img_size=96, out_indices=(1,))
    assert '100.0% of the parameters' in load_pretrained(net, tmp_path / 'cmt.pth')
    assert net.relative_pos_b.shape == (2, 16 * 9, 9)


def test_tables_of_other_than_square_images(tmp_path):
    path = tmp_path / 'cmt.pth'
    torch.save(build(img_size=(64, 160)).state_dict(), path)
    assert '100.0%' in load_pretrained(CMT(SMALL, img_size=(64, 160)), path)
    with pytest.raises(UserError, match='relative_pos_a with 10 keys is not of a square image'):
        load_pretrained(CMT(SMALL), path)


# Settings


@pytest.mark.parametrize('size', [0, (224,), 'large', (224, 224, 3), None, 224.5])
def test_wrong_image_sizes(size):
    with pytest.raises(UserError, match='img_size must be a side'):
        CMT(img_size=size)


@pytest.mark.parametrize('size, grid', [(224, (7, 7)), ((192, 320), (6, 10)),
                                        ([200, 304], (7, 10))])
def test_image_sizes(size, grid):
    with torch.device('meta'):
        net = CMT(img_size=size)
    keys = grid[0] * grid[1]
    tables = [tuple(net.get_parameter(f'relative_pos_{letter}').shape) for letter in 'abcd']
    assert tables == [(1, 64 * keys, keys), (2, 16 * keys, keys), (4, 4 * keys, keys),
                      (8, keys, keys)]


def test_layers():
    net = build()
    ids = {'stem_conv1.weight': 0, 'stem_norm3.bias': 0, 'patch_embed_a.proj.bias': 1,
           'relative_pos_a': 1, 'blocks_a.0.mlp.proj.bias': 1, 'patch_embed_c.norm.weight': 3,
           'relative_pos_c': 3, 'blocks_c.1.attn.q.bias': 4, 'blocks_d.0.proj.bias': 5,
           'norm0.bias': 6}
    assert {name: net.layer_id(name) for name in ids} == ids


@pytest.mark.parametrize('variant, size, grid', [
    ('cmt_s', (224, 224), (7, 7)), ('cmt_ti', (192, 320), (6, 10)),
    ('cmt_b-resized_bias', (192, 320), (7, 7)), ('cmt_xs-padded', (200, 304), (7, 10)),
    ('cmt_ti-resized_bias-padded', (200, 304), (7, 7))])
def test_variants(variant, size, grid):
    with torch.device('meta'):
        net = CMT(**CMT.reference(variant, size))
    assert net.grid == grid and net.out_channels[0] == CMT.archs[variant.split('-')[0]]['dim']
