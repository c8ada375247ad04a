"""What is HorNet's own: its filter by the textbook, its names and numbers, its first steps."""
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import stirred

from backbones import UserError, create
from backbones.checkpoint import load_pretrained
from backbones.hornet import GlobalLocalFilter, HorNet
from suite.optim import LayerDecay

FILTERS = (None, None, (6, 4), (3, 2))
SMALL = dict(dim=8, depths=(1, 1, 2, 1), orders=(2, 3, 4, 5), filters=FILTERS)


def build(**options):
    """A small network whose every parameter matters."""
    return stirred(HorNet(SMALL, **options))


def images(height=97, width=131):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


# The filter


def stretched(grid, size, axis):
    """Straight lines between the values along an axis, its ends kept."""
    positions = np.linspace(0, grid.shape[axis] - 1, size) if size > 1 else [0]
    return np.apply_along_axis(
        lambda line: np.interp(positions, range(len(line)), line), axis, grid)


def textbook_filter(x, weight):
    """Cosine sums over a filtered half spectrum; x is C x H x W, weight C x h x w x 2."""
    height, width = x.shape[1:]
    weight = stretched(stretched(weight, height, 1), width // 2 + 1, 2)
    rows, columns = np.arange(height), np.arange(width)
    bins = np.arange(width // 2 + 1)
    down = np.exp(-2j * np.pi * np.outer(rows, rows) / height)
    across = np.exp(-2j * np.pi * np.outer(bins, columns) / width)
    spectrum = np.einsum('ky,lx,cyx->ckl', down, across, x)
    spectrum = spectrum * (weight[..., 0] + 1j * weight[..., 1])
    # Bins that have no mirror image count once, all others for two.
    twice = np.where((bins == 0) | (2 * bins == width), 1, 2)
    waves = np.einsum('ky,lx,ckl,l->cyx', down.conj(), across.conj(), spectrum, twice)
    return waves.real / (height * width)


@pytest.mark.parametrize('size', [(6, 6), (6, 7), (9, 13), (12, 10), (5, 4), (3, 1), (1, 2)])
def test_filter_is_the_textbook_at_any_size(size):
    torch.manual_seed(0)
    layer, x = GlobalLocalFilter(8, (6, 4)), torch.randn(2, *size, 8)
    torch.nn.init.normal_(layer.complex_weight)
    for norm in (layer.pre_norm, layer.post_norm):
        torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    with torch.no_grad():
        ours = layer(x)
        local, distant = layer.pre_norm(x).permute(0, 3, 1, 2).chunk(2, 1)
        weight = layer.complex_weight.double().numpy()
        distant = torch.stack([torch.from_numpy(textbook_filter(each.double().numpy(), weight))
                               for each in distant]).float()
        local = F.conv2d(local, layer.dw.weight, padding=1, groups=4)
        turns = [half[:, channel] for channel in range(4) for half in (local, distant)]
        expected = layer.post_norm(torch.stack(turns, -1))
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize('cast', [True, False], ids=['autocast', 'bfloat16'])
def test_spectra_are_float32(cast, monkeypatch):
    seen, rfft2 = [], torch.fft.rfft2
    monkeypatch.setattr(torch.fft, 'rfft2', lambda x, **kw: seen.append(x.dtype) or rfft2(x, **kw))
    net, x = build(), images()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=cast):
        maps = net(x) if cast else net.bfloat16()(x.bfloat16())
    assert seen == [torch.float32] * 3
    assert all(y.isfinite().all() for y in maps)
    assert cast or all(y.dtype == torch.bfloat16 for y in maps)


# Names and numbers


def official(net, size=None, names='official'):
    """A checkpoint of the ImageNet code, or the same weights under mmpretrain's names."""
    state = {}
    for name, tensor in build().state_dict().items():
        if name.startswith('norm'):
            continue
        if name.endswith(('proj_in.weight', 'proj_out.weight')) or '.pws.' in name:
            tensor = tensor[:, :, None, None] if name.endswith('weight') else tensor
        if size and name.endswith('complex_weight'):
            tensor = torch.randn(len(tensor), *size, 2)
        if names == 'mmpretrain':
            name = 'backbone.' + name.replace('.pws.', '.projs.')
            name += '.weight' * name.endswith(('gamma1', 'gamma2'))
        state[name] = tensor
    if names == 'mmpretrain':
        return dict(state_dict={**state, 'head.fc.weight': torch.zeros(10, 64)})
    last = {f'norm.{leaf}': torch.randn(64) for leaf in ('weight', 'bias')}
    return dict(model={**state, **last, 'head.weight': torch.zeros(10, 64),
                       'head.bias': torch.zeros(10)})


@pytest.mark.parametrize('names', ['official', 'mmpretrain'])
def test_checkpoints(names, tmp_path, caplog):
    net, path = build(), tmp_path / 'hornet.pth'
    torch.save(official(net, names=names), path)
    fresh = HorNet(SMALL).eval()
    with caplog.at_level(logging.INFO, 'backbones'):
        assert '100.0% of the parameters' in load_pretrained(fresh, path)
    assert 'resampled' not in caplog.text
    assert fresh.norm3.weight.unique().tolist() == [1]
    for i in range(4):
        fresh.get_submodule(f'norm{i}').load_state_dict(net.get_submodule(f'norm{i}').state_dict())
    with torch.no_grad():
        for ours, expected in zip(fresh(images()), net(images()), strict=True):
            assert torch.equal(ours, expected)


def test_filters_of_another_size(tmp_path, caplog):
    """As mmpretrain's for 384 pixels, which are 24 x 12 where the official ones are 24 x 13."""
    path, name = tmp_path / 'hornet.pth', 'stages.2.1.gnconv.dwconv.complex_weight'
    torch.save(official(build(), size=(7, 3)), path)
    net = HorNet(SMALL)
    with caplog.at_level(logging.INFO, 'backbones'):
        load_pretrained(net, path)
    assert 'filters resampled from 7x3 to 6x4, 7x3 to 3x2; to keep' in caplog.text
    saved = torch.load(path)['model'][name].numpy()
    expected = torch.from_numpy(stretched(stretched(saved, 6, 1), 4, 2)).float()
    torch.testing.assert_close(net.state_dict()[name], expected)
    kept = HorNet(SMALL, filters=(None, None, (7, 3), (7, 3)))
    load_pretrained(kept, path)
    assert np.array_equal(kept.state_dict()[name], saved)


def test_checkpoint_of_the_other_kind(tmp_path):
    torch.save(official(build()), tmp_path / 'hornet.pth')
    with pytest.raises(UserError, match='does not fit HorNet.*missing stages.2.0.gnconv.dwconv'):
        load_pretrained(HorNet(SMALL, filters=(None,) * 4), tmp_path / 'hornet.pth')


@pytest.mark.parametrize('variant, arch, sizes', [
    ('tiny_gf', 'tiny_gf', [(14, 8), (7, 4)]),
    ('tiny_gf_h24w13', 'tiny_gf', [(24, 13), (12, 7)]),
    ('large_gf_img384', 'large_gf_img384', [(24, 13), (12, 7)]),
    ('small_gf_h14w8', 'small_gf', [(14, 8), (7, 4)]),
])
def test_variants_name_their_filters(variant, arch, sizes):
    with torch.device('meta'):
        net = HorNet(**HorNet.reference(variant, (224, 224)))
    assert net.out_channels[0] == HorNet.archs[arch]['dim']
    found = [net.stages[stage][0].gnconv.dwconv.complex_weight.shape[1:3] for stage in (2, 3)]
    assert found == sizes


def test_layers_are_the_authors():
    with torch.device('meta'):
        net = create('hornet_tiny_gf')
        short = create('hornet_tiny_gf', out_indices=(1,))
    ids = {f'downsample_layers.{i}.0.weight': layer for i, layer in enumerate((0, 2, 3, 12))}
    ids |= {f'stages.{stage}.1.gamma1': layer for stage, layer in ((0, 1), (1, 2), (3, 12))}
    ids |= {f'stages.2.{block}.norm1.bias': min(3 + block // 2, 11) for block in range(18)}
    ids |= {'norm2.weight': 13}
    assert {name: net.layer_id(name) for name in ids} == ids and net.num_layers == 12
    assert short.layer_id('norm1.weight') == 13


def test_vectors_take_no_weight_decay():
    """The authors' rule; the filters are none and do."""
    model = torch.nn.Module()
    model.backbone = build()
    wrapper = dict(optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05))
    for group in LayerDecay(wrapper, dict(bias_decay=False))(model).optimizer.param_groups:
        for parameter in group['params']:
            assert group['weight_decay'] == (0 if parameter.ndim == 1 else 0.05)


# First steps


@pytest.mark.parametrize('arch', ['hornet_tiny_7x7', 'hornet_tiny_gf'])
def test_black_margins_do_not_blow_up_gradients(arch):
    torch.manual_seed(0)
    net, x = create(arch, drop_path_rate=0.), images(64, 96)
    x[:, :, 40:] = 0
    sum((y * torch.randn_like(y)).mean() for y in net(x)).backward()
    assert max(parameter.grad.norm() for parameter in net.parameters()) < 10
