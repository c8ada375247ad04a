"""Dense heads on nuclei: losses against plain loops, outputs at full resolution, and nuclei
back out of perfect maps."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import PixelData

from histology.errors import DataError
from histology.losses import cross_entropy, dice_loss, hv_gradient, hv_gradient_mse, hv_mse
from histology.metrics import nuclei_scores
from histology.targets import boundary_classes, hv_maps
from suite import components  # noqa: F401

CHANNELS, STRIDES = (8, 12, 16, 20), (4, 8, 16, 32)


def head(kind: str = 'HoverHead', **settings) -> torch.nn.Module:
    torch.manual_seed(0)
    return MODELS.build(dict(type=f'mmengine.{kind}', **{**dict(
        num_classes=1, in_channels=list(CHANNELS), in_index=[0, 1, 2, 3], channels=16,
        fine_channels=4, norm_cfg=dict(type='BN')), **settings}))


def features(height: int, width: int, batch: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(1)
    maps = [torch.randn(batch, c, -(-height // s), -(-width // s))
            for c, s in zip(CHANNELS, STRIDES)]
    return [*maps, torch.randn(batch, 3, height, width)]


def nuclei() -> np.ndarray:
    """Pairs of touching ellipses, 96 x 128."""
    y, x = np.mgrid[:96, :128]
    labels = np.zeros((96, 128), np.int32)
    for index, (cy, cx) in enumerate([(20, 22), (20, 42), (24, 90), (40, 90), (70, 30), (72, 100)]):
        labels[((y - cy) / 9) ** 2 + ((x - cx) / 11) ** 2 <= 1] = index + 1
    return labels


def samples(batch: int = 2, types: bool = False) -> list:
    from mmseg.structures import SegDataSample
    labels = nuclei()
    true = dict(hv=torch.from_numpy(hv_maps(labels)),
                classes=torch.from_numpy(boundary_classes(labels))[None])
    if types:
        true['types'] = torch.from_numpy(labels % 3).to(torch.uint8)[None]
    found = []
    for _ in range(batch):
        sample = SegDataSample(metainfo=dict(img_path='images/a.png'))
        sample.gt_nuclei = PixelData(**true)
        found.append(sample)
    return found


# Losses

def test_cross_entropy_and_dice_of_known_probabilities():
    # p = 0.8 for the class on the left half, where it is true, and on the right, where not.
    logits = torch.tensor([0.2, 0.8]).log()[None, :, None, None].expand(2, 2, 6, 8)
    classes = torch.zeros(2, 6, 8, dtype=torch.int64)
    classes[:, :, :4] = 1
    assert cross_entropy(logits, classes).item() == pytest.approx(
        -(np.log(0.8) + np.log(0.2)) / 2, abs=1e-6)
    n = 96
    first = 1 - (2 * 0.2 * n / 2 + 1e-3) / (0.2 * n + n / 2 + 1e-3)
    second = 1 - (2 * 0.8 * n / 2 + 1e-3) / (0.8 * n + n / 2 + 1e-3)
    assert dice_loss(logits, classes).item() == pytest.approx(first + second, abs=1e-6)


def test_dice_of_a_perfect_and_of_an_absent_class():
    classes = torch.zeros(1, 4, 4, dtype=torch.int64)
    sure = torch.tensor([50., -50.])[None, :, None, None].expand(1, 2, 4, 4)
    assert dice_loss(sure, classes).item() == pytest.approx(0, abs=1e-6)
    # Background all wrong, and all found that is not there.
    assert dice_loss(-sure, classes).item() == pytest.approx(2, abs=1e-3)


def naive_gradient(plane: np.ndarray, along: int) -> np.ndarray:
    out = np.zeros_like(plane)
    height, width = plane.shape
    for y in range(height):
        for x in range(width):
            for v in range(-2, 3):
                for h in range(-2, 3):
                    if 0 <= y + v < height and 0 <= x + h < width:
                        out[y, x] += (v, h)[along] / (h * h + v * v + 1e-15) * plane[y + v, x + h]
    return out


@pytest.mark.parametrize('crossed', (False, True))
def test_gradient_loss_is_that_of_a_plain_loop(crossed):
    rng = np.random.default_rng(0)
    found, true = rng.normal(size=(2, 2, 2, 9, 11))
    inside = rng.random((2, 9, 11)) < 0.4
    total = 0
    for image in range(2):
        for channel in range(2):
            along = channel if crossed else 1 - channel  # 1: x
            difference = naive_gradient(found[image, channel] - true[image, channel], along)
            total += (difference[inside[image]] ** 2).sum()
    loss = hv_gradient_mse(torch.tensor(found).float(), torch.tensor(true).float(),
                           torch.tensor(inside), crossed)
    assert loss.item() == pytest.approx(total / (2 * inside.sum()), rel=1e-5)
    assert hv_mse(torch.tensor(found), torch.tensor(true)).item() == pytest.approx(
        ((found - true) ** 2).mean())


def test_a_horizontal_ramp_has_a_slope_in_the_x_map_alone():
    ramp = torch.arange(12.).expand(1, 2, 12, 12) * 0.1
    intended, crossed = hv_gradient(ramp)[..., 2:-2, 2:-2], hv_gradient(ramp, True)[..., 2:-2, 2:-2]
    # Sum of h^2 / (h^2 + v^2) over the kernel: 12, by symmetry half of 24.
    assert torch.allclose(intended[:, 0], torch.tensor(1.2), atol=1e-5)
    assert intended[:, 1].abs().max() < 1e-5
    assert crossed[:, 0].abs().max() < 1e-5
    assert torch.allclose(crossed[:, 1], torch.tensor(1.2), atol=1e-5)


def test_gradient_loss_ignores_the_background_and_keeps_float32_under_autocast():
    true = torch.zeros(1, 2, 16, 16)
    found = true.clone()
    found[..., 10:] = 5.
    inside = torch.zeros(1, 16, 16, dtype=torch.bool)
    inside[..., :7] = True
    assert hv_gradient_mse(found, true, inside) == 0
    inside[..., 8] = True
    with torch.autocast('cpu', torch.bfloat16):
        assert hv_gradient_mse(found, true, inside).dtype == torch.float32
        assert hv_gradient_mse(found, true, inside) > 1
    assert hv_gradient_mse(found, true, ~inside & False) == 0


# Heads

@pytest.mark.parametrize('kind, types, channels', [
    ('HoverHead', 1, dict(nuclei=2, hv=2)), ('HoverHead', 4, dict(nuclei=2, hv=2, types=5)),
    ('BoundaryHead', 1, dict(classes=3)), ('BoundaryHead', 2, dict(classes=3, types=3))])
def test_outputs_have_the_size_of_the_image(kind, types, channels):
    net = head(kind, num_classes=types).eval()
    inputs = features(70, 93)
    with torch.no_grad():
        outputs, maps = net(inputs), net.maps(inputs)
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        name: (2, count, 70, 93) for name, count in channels.items()}
    assert maps.shape == (2, sum(channels.values()), 70, 93) and maps.dtype == torch.float32
    start = 0
    for name, count in channels.items():
        part, start = maps[:, start:start + count], start + count
        if name == 'hv':
            assert torch.equal(part, outputs['hv'])
        else:
            assert torch.allclose(part.sum(1), torch.ones(2, 70, 93), atol=1e-5)


def test_the_image_reaches_the_output_at_every_pixel():
    net = head().eval()
    inputs = features(64, 64, batch=1)
    changed = [*inputs[:-1], inputs[-1].clone()]
    changed[-1][..., 33, 21] += 10
    with torch.no_grad():
        moved = (net(inputs)['nuclei'] - net(changed)['nuclei']).abs().amax((0, 1)) > 0
    rows, columns = torch.nonzero(moved, as_tuple=True)
    assert moved[33, 21] and 0 < len(rows) < 600
    assert (rows - 33).abs().max() < 12 and (columns - 21).abs().max() < 12


@pytest.mark.parametrize('kind, names', [
    ('HoverHead', {'nuclei_ce', 'nuclei_dice', 'hv_mse', 'hv_gradient'}),
    ('BoundaryHead', {'ce', 'dice'})])
def test_losses_have_names_weights_and_gradients(kind, names):
    net, inputs = head(kind, num_classes=2, dropout_ratio=0.), features(96, 128)
    losses = net.loss(inputs, samples(types=True))
    assert set(losses) == {f'loss_{name}' for name in names | {'types_ce', 'types_dice'}}
    sum(losses.values()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    doubled = head(kind, num_classes=2, dropout_ratio=0., weights=dict(types_ce=2.))
    again = doubled.loss(inputs, samples(types=True))
    for name, value in losses.items():
        factor = 2 if name == 'loss_types_ce' else 1
        assert again[name].item() == pytest.approx(factor * value.item(), rel=1e-5), name


def test_the_crossed_form_is_another_loss():
    inputs, true = features(96, 128), samples()
    plain, crossed = (head(crossed=form, dropout_ratio=0.).loss(inputs, true)
                      for form in (False, True))
    assert plain['loss_hv_gradient'].item() != pytest.approx(
        crossed['loss_hv_gradient'].item(), rel=1e-3)
    assert plain['loss_hv_mse'].item() == pytest.approx(crossed['loss_hv_mse'].item())


def test_mistakes_in_a_head_are_one_line():
    with pytest.raises(DataError, match='no loss hv_msee to weight; it has nuclei_ce'):
        head(weights=dict(hv_msee=2.))
    with pytest.raises(DataError, match='images/a.png comes without types, .*num_classes=1'):
        head(num_classes=4).loss(features(96, 128), samples())


# Nuclei

@pytest.mark.parametrize('kind, least', [('HoverHead', 0.97), ('BoundaryHead', 0.9)])
def test_perfect_maps_give_the_nuclei_back(kind, least):
    labels = nuclei()
    foreground = (labels > 0).astype(np.float32)
    if kind == 'HoverHead':
        maps = np.concatenate([np.stack([1 - foreground, foreground]), hv_maps(labels)])
    else:
        maps = np.eye(3, dtype=np.float32)[boundary_classes(labels)].transpose(2, 0, 1)
    kinds = np.array([0, 1, 2, 1, 1, 2, 2])[labels]
    maps = np.concatenate([maps, np.eye(3, dtype=np.float32)[kinds].transpose(2, 0, 1)])
    found, types = head(kind, num_classes=2).nuclei(maps)
    scores = nuclei_scores(labels, found)
    assert found.max() == 6 and scores['pq'] > least, scores
    both = (labels > 0) & (found > 0)
    assert (types[both] == kinds[both]).mean() > 0.99 and types.dtype == np.uint8
    assert ((types > 0) == (found > 0)).all()
    assert head(kind).nuclei(maps[:-3])[1] is None


def test_thresholds_reach_the_watershed():
    labels = nuclei()
    foreground = 0.4 * (labels > 0).astype(np.float32)
    maps = np.concatenate([np.stack([1 - foreground, foreground]), hv_maps(labels)])
    assert head().nuclei(maps)[0].max() == 0
    assert head(threshold=0.3).nuclei(maps)[0].max() == 6
    assert head(threshold=0.3, least_area=10 ** 4).nuclei(maps)[0].max() == 0
