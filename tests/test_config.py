"""Configs: what follows from a backbone is filled in, what a user asks for wins, and what
nobody can have meant is refused."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from backbones.errors import UserError
from suite import components, config  # noqa: F401

SYSTEMS = sorted(path.relative_to(config.CONFIGS) for path in config.CONFIGS.glob('*/*.py')
                 if path.parent.name != '_base_')
PROTOCOLS = sorted(path.stem for path in config.CONFIGS.glob('*.py'))


def build(cfg: Config) -> torch.nn.Module:
    """The model, without memory for its weights; building it adds to its config."""
    with config.scope(cfg), torch.device('meta'):
        return MODELS.build(ConfigDict(cfg.model.to_dict()))


def protocol_of(path: Path) -> str | None:
    """A config is named after its protocol; what may follow says what sets it apart."""
    return max((name for name in PROTOCOLS if f'{path.stem}_'.startswith(f'{name}_')),
               key=len, default=None)


def strings(node) -> list[str]:
    if isinstance(node, dict):
        return [text for value in node.values() for text in strings(value)]
    if isinstance(node, list | tuple):
        return [text for value in node for text in strings(value)]
    return [node] if isinstance(node, str) else []


# Every config that is shipped

def test_every_system_has_every_protocol():
    systems = {path.parent for path in SYSTEMS}
    needed = 'maskrcnn_coco', 'cascade_coco', 'upernet_ade20k'
    assert len(systems) >= 3 and set(PROTOCOLS) >= set(SCHEDULES)
    assert {(system, name) for system in systems for name in needed} <= {
        (path.parent, path.stem) for path in SYSTEMS}
    assert all(map(protocol_of, SYSTEMS))


@pytest.mark.parametrize('path', SYSTEMS, ids=str)
def test_builds_with_channels_that_fit(path):
    cfg = config.load(str(path))
    assert cfg.protocol == protocol_of(path)
    model = build(cfg)
    channels = list(model.backbone.out_channels)
    classes = len(config.classes_of(cfg.test_dataloader.dataset)['classes'])
    if path.stem.startswith('upernet'):
        assert model.decode_head.num_classes == classes
        assert list(model.decode_head.in_channels) == channels
        if 'auxiliary_head' in cfg.model:
            assert model.auxiliary_head.num_classes == classes
            assert model.auxiliary_head.in_channels == channels[2]
            assert model.auxiliary_head.in_index == 2
    else:
        boxes, masks = model.roi_head.bbox_head, model.roi_head.mask_head
        heads = [*boxes, *masks] if path.stem.startswith('cascade') else [boxes, masks]
        assert {head.num_classes for head in heads} == {classes}
        assert len(heads) == (6 if path.stem.startswith('cascade') else 2)
        assert [module.conv.in_channels for module in model.neck.lateral_convs] == channels
        assert model.rpn_head.prior_generator.strides == [(s, s) for s in (4, 8, 16, 32, 64)]
        for extractor in (cfg.model.roi_head.bbox_roi_extractor,
                          cfg.model.roi_head.mask_roi_extractor):
            assert extractor.featmap_strides == [4, 8, 16, 32]
            assert extractor.roi_layer.use_torchvision


# Learning rate for 16 images, weight decay, length, decay steps: Swin's published ones.
SCHEDULES = {
    'maskrcnn_coco': (1e-4, 0.05, 12, [8, 11]), 'cascade_coco': (1e-4, 0.05, 12, [8, 11]),
    'maskrcnn_coco_3x': (1e-4, 0.05, 36, [27, 33]), 'cascade_coco_3x': (1e-4, 0.05, 36, [27, 33]),
    'upernet_ade20k': (6e-5, 0.01, 160000, None)}


@pytest.mark.parametrize('protocol', SCHEDULES)
def test_schedule(protocol):
    cfg = config.load(protocol, backbone='swin_tiny')
    lr, decay, length, steps = SCHEDULES[protocol]
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', lr, decay)
    assert cfg.train_cfg.get('max_epochs', cfg.train_cfg.get('max_iters')) == length
    last = cfg.param_scheduler[-1]
    assert last.end == length and last.get('milestones') == steps
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=16)
    classes = config.classes_of(cfg.train_dataloader.dataset)['classes']
    assert len(classes) == (150 if 'ade20k' in protocol else 80)


@pytest.mark.parametrize('backbone, channels', [
    ('swin_tiny', [96, 192, 384, 768]), ('timm/convnext_tiny', [96, 192, 384, 768]),
    ('resnet18', [64, 128, 256, 512]), ('dilateformer_small', [72, 144, 288, 576])])
def test_swaps_the_backbone(backbone, channels):
    cfg = config.load('maskrcnn_coco', backbone=backbone)
    assert cfg.model.neck.in_channels == channels
    assert config.backbone_name(cfg.model.backbone) == backbone


@pytest.mark.parametrize('protocol, backbone, mini', [
    ('maskrcnn_coco_3x', 'swin_tiny', True), ('cascade_coco', 'resnet18', False),
    ('upernet_ade20k', 'dilateformer_small', False)])
def test_the_dumped_text_reloads_to_the_same(protocol, backbone, mini, tmp_path):
    cfg = config.load(protocol, backbone=backbone, data_root='/somewhere', mini=mini)
    cfg.dump(tmp_path / 'resolved.py')
    again = config.load(str(tmp_path / 'resolved.py'))
    assert again.to_dict() == cfg.to_dict()
    assert config.fingerprint(again) == config.fingerprint(cfg)
    build(again)


def test_swaps_the_arch_without_a_channel_number():
    cfg = config.load('dilateformer/maskrcnn_coco', options={'model.backbone.arch': 'base'})
    assert cfg.model.neck.in_channels == [96, 192, 384, 768]
    assert cfg.model.backbone.drop_path_rate == 0.2
    assert build(cfg).neck.lateral_convs[3].conv.in_channels == 768


def test_wires_what_the_out_indices_leave():
    cfg = config.load('maskrcnn_coco', backbone='swin_tiny',
                      options={'model.backbone.out_indices': (1, 2, 3)})
    assert cfg.model.neck.in_channels == [192, 384, 768]
    assert cfg.model.rpn_head.anchor_generator.strides == [8, 16, 32, 64, 128]
    assert cfg.model.roi_head.mask_roi_extractor.featmap_strides == [8, 16, 32, 64]
    build(cfg)
    cfg = config.load('upernet_ade20k', backbone='swin_tiny',
                      options={'model.backbone.out_indices': (0, 1, 2)})
    assert cfg.model.auxiliary_head.in_index == 2 and cfg.model.auxiliary_head.in_channels == 384


def test_what_a_config_sets_itself_stays():
    cfg = config.load('upernet_ade20k', backbone='swin_tiny',
                      options={'model.decode_head.num_classes': 7,
                               'model.auxiliary_head.in_index': 1,
                               'model.auxiliary_head.in_channels': 192})
    assert cfg.model.decode_head.num_classes == 7
    assert (cfg.model.auxiliary_head.in_index, cfg.model.auxiliary_head.in_channels) == (1, 192)


# Data and --mini

def test_data_root_reaches_every_path(tmp_path):
    cfg = config.load('maskrcnn_coco', backbone='swin_tiny', data_root=str(tmp_path))
    found = [text for text in strings(cfg.to_dict()) if 'coco/' in text and 'bbox' not in text]
    assert len(found) == 5 and all(text.startswith(f'{tmp_path}/coco/') for text in found)
    default = config.load('upernet_ade20k', backbone='swin_tiny')
    assert default.train_dataloader.dataset.data_root == (
        f'{config.ROOT}/data/ade/ADEChallengeData2016/')
    mini = config.load('upernet_ade20k', backbone='swin_tiny', mini=True)
    assert mini.data_root == f'{config.ROOT}/data/mini'


def test_mini_shrinks_sizes_heads_and_schedule():
    cfg = config.load('maskrcnn_coco', backbone='swin_tiny', mini=True)
    assert cfg.mini is True and not [key for key in cfg if key.startswith('mini_')]
    assert cfg.train_dataloader.dataset.pipeline[2].scale == (267, 160)
    assert [step.scale for step in cfg.tta_pipeline[1].transforms[0]] == [
        (267, 120), (267, 160), (333, 200)]
    assert cfg.model.neck.out_channels == 64 and cfg.model.backbone.drop_path_rate == 0
    assert cfg.model.roi_head.bbox_head.num_classes == 3
    assert cfg.model.roi_head.mask_head.conv_out_channels == 64
    assert cfg.train_cfg.max_epochs < 12 <= config.load(
        'maskrcnn_coco', backbone='swin_tiny').train_cfg.max_epochs
    segmentor = config.load('upernet_ade20k', backbone='swin_tiny', mini=True)
    assert segmentor.model.decode_head.num_classes == 5
    assert segmentor.model.data_preprocessor.size == (128, 128)
    assert segmentor.train_dataloader.dataset.pipeline[3].crop_size == (128, 128)


def test_mini_gives_way_to_options_and_is_not_applied_twice(tmp_path):
    cfg = config.load('cascade_coco', backbone='swin_tiny', mini=True, data_root='/somewhere',
                      options={'train_cfg.max_epochs': 2})
    assert cfg.train_cfg.max_epochs == 2
    assert [head.num_shared_convs for head in cfg.model.roi_head.bbox_head] == [1, 1, 1]
    cfg.dump(tmp_path / 'resolved.py')
    assert config.load(str(tmp_path / 'resolved.py'), mini=True).to_dict() == cfg.to_dict()


# Settings from the command line

def small() -> Config:
    heads = [dict(width=8, loss=dict(weight=1.0)), dict(width=8, loss=dict(weight=1.0))]
    return Config(dict(heads=heads, schedule=dict(max_epochs=3, steps=[1, 2]),
                       hooks=[dict(type='A'), dict(type='B', images=4)], name='x'))


@pytest.mark.parametrize('key, value, where, expected', [
    ('schedule.max_epochs', 5, 'schedule', dict(max_epochs=5, steps=[1, 2])),
    ('schedule.warmup', 5, 'schedule', dict(max_epochs=3, steps=[1, 2], warmup=5)),
    ('schedule.steps', [4], 'schedule', dict(max_epochs=3, steps=[4])),
    ('schedule.steps.1', 9, 'schedule', dict(max_epochs=3, steps=[1, 9])),
    ('heads.width', 2, 'heads', [dict(width=2, loss=dict(weight=1.0))] * 2),
    ('heads.loss.weight', 2, 'heads', [dict(width=8, loss=dict(weight=2))] * 2),
    ('heads.1.loss.weight', 2, 'heads', [dict(width=8, loss=dict(weight=1.0)),
                                         dict(width=8, loss=dict(weight=2))]),
    ('heads.bias', 1, 'heads', [dict(width=8, loss=dict(weight=1.0), bias=1)] * 2),
    ('hooks.images', 1, 'hooks', [dict(type='A'), dict(type='B', images=1)]),
    ('name', 'y', 'name', 'y'),
    ('find_unused_parameters', True, 'find_unused_parameters', True)])
def test_set_option(key, value, where, expected):
    cfg = small()
    config.set_option(cfg, key, value)
    assert cfg[where] == expected


@pytest.mark.parametrize('key, hint', [
    ('schedul.max_epochs', 'did you mean schedule or'),
    ('schedule.max_epoch', 'did you mean max_epochs?'),
    ('schedule.max_epohcs', 'did you mean max_epochs?'),
    ('schedule.max_epoxhs', 'did you mean max_epochs?'),
    ('max_epochs', 'did you mean schedule.max_epochs?'),
    ('heads.los.weight', 'did you mean loss?'),
    ('heads.wdith', 'did you mean width?'),
    ('heads.2.width', "there is no '2'"),
    ('hooks.2', "there is no '2'"),
    ('name.x', "there is no 'x'"),
    ('schedule.max_epochs.x', "there is no 'x'")])
def test_set_option_refuses(key, hint):
    cfg = small()
    with pytest.raises(UserError) as error:
        config.set_option(cfg, key, 1)
    assert hint in str(error.value) and repr(key) in str(error.value)
    assert '\n' not in str(error.value)
    assert cfg.to_dict() == small().to_dict()


# Mistakes

@pytest.mark.parametrize('options, words', [
    ({'model.backbone.arch': 'tyni'}, ("Swin has no arch 'tyni'", 'did you mean tiny')),
    ({'model.backbone.drop_path_rat': .1}, ('did you mean drop_path_rate',)),
    ({'model.backbone.type': 'Swim'}, ("unknown backbone type 'Swim'", 'did you mean Swin')),
    ({'model.backbone': dict(arch='tiny')}, ('unknown backbone type', 'Known: ')),
    ({'model.backbone.drop_path_rate': 'high'}, ('does not take', "'high'")),
    ({'model.backbone': dict(type='mmdet.ResNet', depth=18)}, ('lacks out_channels',)),
    ({'model.backbne.arch': 'small'}, ('did you mean backbone',))])
def test_names_what_is_wrong_with_a_setting(options, words):
    with pytest.raises(UserError) as error:
        config.load('swin/maskrcnn_coco', options=options)
    assert '\n' not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize('name, words', [
    ('configs/swin/maskrcn_coco.py', ('no config', 'did you mean configs/swin/maskrcnn_coco.py')),
    ('LICENSE', ('cannot be read',)),
    ('_base_/coco', ('no complete protocol', 'lacks model')),
    ('_base_/maskrcnn', ('no complete protocol', 'train_dataloader')),
    ('maskrcnn_coco', ('leaves the backbone open', '--backbone', 'swin_tiny', 'timm/NAME'))])
def test_names_what_is_wrong_with_a_config(name, words):
    with pytest.raises(UserError) as error:
        config.load(name)
    assert '\n' not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize('text, word', [
    ('_base_ = [', 'SyntaxError'), ('x = 1 / 0', 'ZeroDivisionError'),
    ("_base_ = ['gone.py']", 'gone.py'), ('import gone', 'gone'),
    ("custom_imports = dict(imports=['gone'])", 'gone')])
def test_a_broken_config_is_one_line(text, word, tmp_path):
    (tmp_path / 'mine.py').write_text(text)
    with pytest.raises(UserError) as error:
        config.load(str(tmp_path / 'mine.py'))
    assert word in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('name, words', [
    ('swin_tyni', ('did you mean', 'swin_tiny')), ('timm/convnext_tiniest', ('timm',))])
def test_unknown_backbone(name, words):
    with pytest.raises(UserError) as error:
        config.load('upernet_ade20k', backbone=name)
    for word in words:
        assert word in str(error.value)


def test_a_resolved_config_refuses_another_backbone(tmp_path):
    for protocol in ('maskrcnn_coco', 'upernet_ade20k'):
        path = tmp_path / f'{protocol}.py'
        config.load(protocol, backbone='resnet18').dump(path)
        with pytest.raises(UserError, match=r'sets in_channels \[64, .*gives \[96, .*a protocol'):
            config.load(str(path), backbone='swin_tiny')


def test_a_user_may_bring_a_backbone(tmp_path, monkeypatch):
    (tmp_path / 'my_backbone.py').write_text('''
from backbones.resnet import ResNet
from mmengine.registry import MODELS

@MODELS.register_module()
class MineAlone(ResNet):
    pass
''')
    base = config.CONFIGS / '_base_/maskrcnn_coco.py'
    (tmp_path / 'mine.py').write_text(
        f"_base_ = ['{base}']\ncustom_imports = dict(imports=['suite.components', 'my_backbone'])\n"
        "model = dict(backbone=dict(type='MineAlone', arch='resnet18'))\n")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = config.load(str(tmp_path / 'mine.py'))
    assert cfg.model.neck.in_channels == [64, 128, 256, 512]
    assert type(build(cfg).backbone).__name__ == 'MineAlone'
    assert config.backbone_name(cfg.model.backbone) == 'minealone_custom'
