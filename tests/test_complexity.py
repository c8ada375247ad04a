"""Counted work equals what is counted by hand, attention included."""
import csv

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from backbones import create
from backbones.dilateformer import MultiDilatedAttention
from suite import config
from suite.complexity import count, of_backbone, of_config, reference_size
from suite.survey import Survey


class SelfAttention(nn.Module):
    """Two heads of 4 channels over all positions of an 8-channel image."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 1, bias=False)

    def forward(self, x):
        t = self.embed(x).unflatten(1, (2, 4)).flatten(3).transpose(2, 3)
        return F.scaled_dot_product_attention(t, t, t)


class Dilated(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 1, bias=False)
        self.attention = MultiDilatedAttention(6, 3, (1, 2, 3))

    def forward(self, x):
        return self.attention(self.embed(x).permute(0, 2, 3, 1))


def test_convolution():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(),
                        nn.Conv2d(8, 8, 3, 2, 1, groups=4)).eval()
    found = count(net, (16, 20))
    assert found.macs == 16 * 20 * 8 * 3 * 9 + 8 * 10 * 8 * 2 * 9
    assert found.parameters == 8 * 27 + 8 + 16 + 8 * 18 + 8


def test_fused_attention_counts():
    for device in ('meta', 'cpu'):
        net = SelfAttention().to(device)
        assert count(net, (6, 5)).macs == 30 * 3 * 8 + 2 * 30 * 30 * 8


def test_elementwise_attention_counts():
    net = Dilated()
    assert count(net, (6, 5)).macs == 30 * (3 * 6 + 6 * 18 + 2 * 9 * 6 + 6 * 6)
    assert not net.attention._forward_hooks


def test_shapes_tell_as_much_as_numbers():
    """Also of norms and interpolation, which are skipped without numbers."""
    counted = []
    for device in ('cpu', 'meta'):
        with torch.device(device):
            counted.append(count(create('mvitv2_tiny', depths=(1, 1, 1, 1)).eval(), (64, 96)))
    assert counted[0] == counted[1] and counted[0].macs > 1e7


def test_work_grows_with_the_image():
    """Convolutions alone: four times the pixels, four times the work."""
    small, large = (of_backbone('resnet18', size) for size in ((64, 96), (128, 192)))
    assert small.parameters == large.parameters
    assert large.macs == 4 * small.macs


def test_a_size_that_a_network_refuses_has_no_work():
    found = of_backbone('spach_ms_mlp_xxs', (64, 96))
    assert found.macs is None and found.parameters > 6e6


# Whole models


SIZE = 64, 96
CHANNELS, STRIDES = (4, 6, 8, 10), (4, 8, 16, 32)
AREAS = [SIZE[0] // stride * (SIZE[1] // stride) for stride in STRIDES]
ADDED = [1 * 2]  # the level that an FPN makes of the last one
CONV = 256 * 256 * 9


@MODELS.register_module()
class Patches(nn.Module):
    """A backbone of one convolution per map, without biases."""

    out_channels, out_strides = CHANNELS, STRIDES

    def __init__(self):
        super().__init__()
        self.embed = nn.ModuleList(nn.Conv2d(3, channels, stride, stride, bias=False)
                                   for channels, stride in zip(CHANNELS, STRIDES))

    def forward(self, x):
        return tuple(conv(x) for conv in self.embed)


@pytest.fixture
def patches(tmp_path):
    """``patches('cascade_coco')``: a protocol's config with that backbone."""
    def load(protocol):
        path = tmp_path / 'patches.py'
        path.write_text(f"_base_ = ['{config.CONFIGS}/_base_/{protocol}.py']\n"
                        "model = dict(backbone=dict(type='Patches'))\n")
        return config.load(str(path))
    return load


PATCHES = SIZE[0] * SIZE[1] * 3 * sum(CHANNELS)
PYRAMID = sum(area * (256 * channels + CONV) for area, channels in zip(AREAS, CHANNELS))
RPN = sum(AREAS + ADDED) * (CONV + 256 * (3 + 4 * 3))
CLASSES = 1024 * (81 + 4 * 80)
MASK = 14 * 14 * (4 * CONV + 256 * 256 * 4) + 28 * 28 * 256 * 80


@pytest.mark.parametrize('protocol, boxes, heads', [
    ('maskrcnn_coco', 49 * 256 * 1024 + 1024 * 1024 + CLASSES, 1),
    ('cascade_coco', 49 * (4 * CONV + 256 * 1024) + CLASSES, 3)])
def test_detector(patches, protocol, boxes, heads):
    found = of_config(patches(protocol), SIZE)
    assert found.backbone == (3 * sum(c * s * s for c, s in zip(CHANNELS, STRIDES)), PATCHES)
    assert found.model.macs == PATCHES + PYRAMID + RPN + heads * (1000 * boxes + 100 * MASK)


def test_parameters_of_a_detector(patches):
    found = of_config(patches('maskrcnn_coco'), SIZE)
    neck = sum(channels * 256 + 256 + CONV + 256 for channels in CHANNELS)
    rpn = CONV + 256 + 256 * 15 + 15
    boxes = 12544 * 1024 + 1024 + 1024 * 1024 + 1024 + CLASSES + 401
    masks = 4 * (CONV + 256) + 256 * 256 * 4 + 256 + 256 * 80 + 80
    assert found.model.parameters - found.backbone.parameters == neck + rpn + boxes + masks


def upernet(classes):
    conv = 512 * 512 * 9
    pooled = (1 + 4 + 9 + 36) * CHANNELS[-1] * 512
    pyramid = AREAS[-1] * (CHANNELS[-1] + 4 * 512) * 512 * 9 + sum(
        area * (channels * 512 + conv) for area, channels in zip(AREAS[:3], CHANNELS))
    return pooled + pyramid + AREAS[0] * (4 * conv + 512 * classes)


def test_segmentor_without_its_auxiliary_head(patches):
    found = of_config(patches('upernet_ade20k'), SIZE)
    assert found.model.macs == PATCHES + upernet(classes=150)


def test_nuclei_at_full_resolution(patches):
    """The image at full and half resolution, 32 and 64 wide, and two outputs of two maps."""
    found = of_config(patches('upernet_kumar'), SIZE)
    whole, half = SIZE[0] * SIZE[1], SIZE[0] * SIZE[1] // 4
    fine = (whole * 3 * 32 * 9 + half * 32 * 64 * 9 + AREAS[0] * 512 * 64
            + half * 128 * 64 * 9 + whole * 96 * 32 * 9 + 2 * whole * (32 * 32 * 9 + 32 * 2))
    assert found.model.macs == PATCHES + upernet(classes=0) + fine


@pytest.mark.parametrize('protocol', ['cascade_coco', 'upernet_ade20k', 'maskrcnn_kumar'])
def test_parameters_are_those_of_the_model_that_trains(protocol):
    cfg = config.load(protocol, backbone='resnet18', mini=True)
    with torch.device('meta'), config.scope(cfg):
        model = MODELS.build(cfg.model)
    assert of_config(cfg, (64, 96)).model.parameters == sum(p.numel() for p in model.parameters())


def test_nothing_else_is_touched():
    cfg = config.load('maskrcnn_coco', backbone='swin_tiny', mini=True)
    text, state, scope = cfg.pretty_text, torch.get_rng_state(), DefaultScope.get_current_instance()
    of_config(cfg, (64, 96))
    assert torch.equal(torch.get_rng_state(), state) and cfg.pretty_text == text
    assert torch.get_default_device() == torch.device('cpu') and torch.is_grad_enabled()
    now = DefaultScope.get_current_instance()
    assert (now and now.scope_name) == (scope and scope.scope_name)


def test_a_refused_size_has_no_work_but_parameters():
    found = of_config(config.load('maskrcnn_coco', backbone='spach_ms_mlp_xxs'), (64, 96))
    assert found.backbone.macs is None and found.model.macs is None
    assert found.model.parameters > found.backbone.parameters + 20e6


@pytest.mark.parametrize('protocol, mini, options, size', [
    ('maskrcnn_coco', False, {}, (800, 1280)), ('cascade_coco_3x', False, {}, (800, 1280)),
    ('maskrcnn_coco', True, {}, (160, 256)),
    ('upernet_ade20k', False, {}, (512, 2048)), ('upernet_ade20k', True, {}, (128, 512)),
    ('upernet_kumar', False, {'model.test_cfg.window': 320}, (320, 320)),
    ('cascade_consep', False, {'model.test_cfg.window': 200}, (400, 400)),
    ('cascade_consep', True, {'model.test_cfg.window': 200}, (200, 200))])
def test_reference_size(protocol, mini, options, size):
    cfg = config.load(protocol, backbone='resnet18', mini=mini, options=options)
    assert reference_size(cfg) == size


def test_a_survey_counts_what_the_configs_say():
    """Also where the heads were counted before, with another backbone of like maps."""
    for name in ('resnet34', 'resnet18'):
        survey = Survey(name)
        for protocol in ('maskrcnn_coco', 'upernet_kumar'):
            work = of_config(config.load(protocol, backbone=name), (64, 96))
            assert survey.at((64, 96)) == work.backbone
            assert survey.at((64, 96), protocol) == work.model


# Command line


def test_tool_prints_and_writes_everything(tool, tmp_path):
    done = tool('complexity', 'resnet18', '--protocol', 'maskrcnn_coco', '--size', 64, 96,
                '--csv', tmp_path / 'a.csv')
    assert not done.status and not done.err
    cfg = config.load('maskrcnn_coco', backbone='resnet18')
    work = of_config(cfg, (64, 96))
    lines = [line.split() for line in done.out.splitlines()]
    assert ['resnet18', '11.18', f'{work.backbone.macs / 1e9:.3f}'] in lines
    assert ['maskrcnn_coco', f'{work.model.parameters / 1e6:.2f}',
            f'{work.model.macs / 1e9:.2f}'] in lines
    assert 'MACs = FLOPs / 2' in done.out and '1000 regions' in done.out
    assert next(line for line in lines if 'classifier' in line)[:8] == [
        'resnet18', 'classifier', '224x224', '11.69', '11.18', '11.18', '-0.0%', '1.81']
    assert lines[-1][:5] == ['1', 'published', 'figures:', '1', 'within']
    with open(tmp_path / 'a.csv', newline='') as file:
        backbone, model, figure = csv.DictReader(file)
    assert model['model'] == 'maskrcnn_coco' and int(model['macs']) == work.model.macs
    assert (backbone['height'], backbone['width']) == ('64', '96')
    assert figure['published_macs'] == '1810000000' and abs(float(figure['macs_by'])) < 0.01


def test_tool_counts_backbones_alone_and_without_published_figures(tool):
    done = tool('complexity', 'timm/resnet18', '--protocol', '--size', 64, 64)
    assert done.out.splitlines()[-1].split()[:2] == ['timm/resnet18', '11.18']
    assert 'ublished' not in done.out


@pytest.mark.parametrize('arguments, message', [
    (['swin_tny'], "unknown backbone 'swin_tny'; did you mean swin_tiny"),
    (['swin_tiny', '--protocol', 'maskrcn_coco'],
     "unknown protocol 'maskrcn_coco'; did you mean maskrcnn_coco"),
    (['swin_tiny', '--size', '16', '224'], 'size 16 x 224: backbones take sides of 32 pixels'),
    (['timm/resnet0'], "timm has no model 'resnet0'"),
    (['swin_tiny', '--csv', '/nowhere/a.csv'], '--csv: /nowhere/a.csv cannot be written')])
def test_tool_mistakes_are_one_line(tool, arguments, message):
    assert tool('complexity', *arguments).complaint().startswith(message)
