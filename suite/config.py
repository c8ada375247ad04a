"""From what a user names to a config that mmengine can run.

A protocol leaves the backbone open, and with it the channels of neck and heads, the
strides, and the number of classes; ``load`` fills in what follows. The result is
complete: it runs under stock mmengine tools, given ``custom_imports``.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import nn

from backbones.errors import UserError, closest
from backbones.registry import available, describe, systems

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs'
DATALOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
# What names sizes in pixels, in pipelines, preprocessors and test settings.
_SIZES = {'scale', 'scales', 'crop_size', 'size', 'stride', 'min_size'}


def find(name: str) -> Path:
    """The config file that a user means: a path, or one below the checkout.

    Raises:
        UserError: there is none; names the closest ones.
    """
    for base in (Path(), ROOT, CONFIGS):
        for path in (base / name, base / f'{name}.py'):
            if path.is_file():
                return path
    known = [str(path.relative_to(ROOT)) for path in sorted(CONFIGS.glob('**/*.py'))
             if '_base_' not in path.parts]
    raise UserError(f'no config {name!r}{closest(name, known)}')


def load(name: str, *, backbone: str | None = None, options: dict | None = None,
         data_root: str | None = None, mini: bool = False) -> Config:
    """Read a config and fill in what follows from its backbone and its data.

    Args:
        name: path of a config file, see ``find``.
        backbone: name for ``backbones.describe``; takes the place of the config's own.
        options: dotted keys and values that win over everything else.
        data_root: folder that holds ``coco/``, ``ade/``, ...; default ``data/`` (of the
            checkout), with ``mini`` ``data/mini/``.
        mini: shrink data, sizes, heads and schedule to a trial of minutes.
    """
    from . import components  # noqa: F401  registers what a config may name
    path = find(name)
    try:
        cfg = Config.fromfile(path, lazy_import=False, import_custom_modules=False)
    except (SyntaxError, KeyError, TypeError, NameError, FileNotFoundError) as error:
        raise UserError(f'config {path} cannot be read: {error}') from error
    if backbone is not None:
        cfg.model.backbone = ConfigDict(describe(backbone))
    if 'backbone' not in cfg.model:
        raise UserError(f'{path} leaves the backbone open: name one with --backbone'
                        f'{closest("", available())}; or timm/NAME')
    if mini:
        shrink(cfg)
    for key in [key for key in cfg if key.startswith('mini_')]:
        cfg.pop(key)
    for key, value in (options or {}).items():
        set_option(cfg, key, value)
    cfg.mini = mini or cfg.get('mini', False)
    cfg.setdefault('protocol', path.stem)
    wire(cfg)
    default = ROOT / ('data/mini' if mini else 'data')
    place_data(cfg, data_root or cfg.get('data_root') or str(default))
    return cfg


def set_option(cfg: Config, key: str, value) -> None:
    """Set a dotted key. A list on the way is entered by index, or, where the next part is
    a name, in all of its members (the three heads of a cascade).

    Raises:
        UserError: what holds the last part does not exist.
    """
    *way, last = key.split('.')
    owners = [cfg]
    for depth, part in enumerate(way):
        owners = [child for owner in owners for child in _enter(owner, part)]
        if not owners:
            held = cfg.get(way[0], {}) if depth else cfg
            names = held if isinstance(held, dict) else ()
            raise UserError(f'option {key!r}: the config has no '
                            f'{".".join(way[:depth + 1])!r}{closest(part, names)}')
    for owner in owners:
        members = owner if isinstance(owner, list) and not last.isdigit() else [owner]
        for member in members:
            member[int(last) if isinstance(member, list) else last] = value


def _enter(owner, part: str) -> Iterator:
    if isinstance(owner, list):
        if part.isdigit():
            yield from owner[int(part):int(part) + 1]
        else:
            for member in owner:
                yield from _enter(member, part)
    elif isinstance(owner, dict | Config) and isinstance(owner.get(part), dict | list):
        yield owner[part]


def shrink(cfg: Config) -> None:
    """Apply a protocol's own ``mini_...`` settings and the mini data's classes."""
    from . import mini
    metainfo = dict(
        coco=dict(classes=mini.MINI_COCO_CLASSES, palette=list(mini.MINI_COCO_PALETTE)),
        ade=dict(classes=mini.MINI_ADE_CLASSES, palette=list(mini.MINI_ADE_PALETTE)))
    settings = {key: value for name in sorted(cfg) if name.startswith('mini_')
                for key, value in cfg[name].items()}
    if not settings:
        raise UserError(f'{cfg.filename} has no mini settings; --mini works with the protocols '
                        'in configs/')
    factor = settings.pop('sizes')
    for name in (*DATALOADERS, 'tta_pipeline'):
        _scale(cfg.get(name), factor)
    for part in (cfg.model.get('data_preprocessor'), cfg.model.get('test_cfg')):
        _scale(part, factor)
    for key, value in settings.items():
        set_option(cfg, key, value)
    for name in DATALOADERS:
        loader = cfg[name]
        loader.num_workers = 0
        kind = Path(loader.dataset.data_root).parts[1]
        loader.dataset.metainfo = metainfo[kind]


def _scale(node, factor: float) -> None:
    """Multiply every size in pixels below ``node``."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in _SIZES and not isinstance(value, dict):
                node[key] = _scaled(value, factor)
            else:
                _scale(value, factor)
    elif isinstance(node, (list, tuple)):
        for value in node:
            _scale(value, factor)


def _scaled(value, factor: float):
    if isinstance(value, (list, tuple)):
        return type(value)(_scaled(item, factor) for item in value)
    return max(1, round(value * factor))


def place_data(cfg: Config, root: str) -> None:
    """Point every path below ``data/``, or below the root of an earlier call, into the
    folder ``root``."""
    old = f'{cfg.get("data_root", "data")}/'
    root = str(Path(root).expanduser().resolve())
    cfg.data_root = root

    def placed(value):
        if isinstance(value, str):
            return f'{root}/{value.removeprefix(old)}' if value.startswith(old) else value
        if isinstance(value, dict):
            for key in value:
                value[key] = placed(value[key])
            return value
        if isinstance(value, (list, tuple)):
            return type(value)(placed(item) for item in value)
        return value

    for name in (*DATALOADERS, 'val_evaluator', 'test_evaluator'):
        if cfg.get(name) is not None:
            cfg[name] = placed(cfg[name])


def build_backbone(cfg: dict) -> nn.Module:
    """Build a backbone from its config without allocating its weights."""
    settings = dict(cfg)
    name = settings.pop('type')
    cls = MODELS.get(f'mmengine.{name}' if '.' not in name else name)
    if cls is None:
        raise UserError(f'unknown backbone type {name!r}{closest(name, systems())}')
    with torch.device('meta'):
        return cls(**settings)


def backbone_name(cfg: dict) -> str:
    """How people call a configured backbone: 'dilateformer_tiny', 'timm/convnext_tiny'."""
    system = cfg['type'].removeprefix('mmengine.')
    if system == 'TimmBackbone':
        return f'timm/{cfg["name"]}'
    arch = cfg.get('arch')
    for name in available():
        if describe(name) == dict(type=system, arch=arch):
            return name
    return system.lower() + ('' if arch is None else '_custom')


def wire(cfg: Config) -> None:
    """Fill in what follows from the backbone and the data; what is set already stays."""
    model = cfg.model
    kind = model.backbone.get('type')
    if kind in systems() or kind == 'TimmBackbone':
        # The scope makes the name ours also where mmdet or mmseg have one like it.
        model.backbone.type = f'mmengine.{kind}'
    net = build_backbone(model.backbone)
    channels, strides = list(net.out_channels), list(net.out_strides)
    classes = len(classes_of(cfg.train_dataloader.dataset)['classes'])
    if 'decode_head' in model:
        _wire_segmentor(model, channels, strides, classes)
    else:
        _wire_detector(model, channels, strides, classes)


def classes_of(dataset: dict) -> dict:
    """Class names and colours of a configured data set."""
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return {**DATASETS.get(dataset['type']).METAINFO, **dataset.get('metainfo', {})}


def _fill(part: dict, **values) -> None:
    for key, value in values.items():
        part.setdefault(key, value)


def _members(part: dict | list) -> list[dict]:
    return part if isinstance(part, list) else [part]


def _wire_detector(model: dict, channels: list[int], strides: list[int], classes: int) -> None:
    neck, width = model.neck, model.neck.out_channels
    _fill(neck, in_channels=channels)
    # FPN appends levels by halving; a backbone may bring some of its own.
    levels = strides[:neck.num_outs]
    while len(levels) < neck.num_outs:
        levels.append(2 * levels[-1])
    neck.num_outs = max(neck.num_outs, len(channels))
    _fill(model.rpn_head, in_channels=width, feat_channels=width)
    _fill(model.rpn_head.anchor_generator, strides=levels)
    roi = model.roi_head
    for extractor in (roi.bbox_roi_extractor, roi.mask_roi_extractor):
        _fill(extractor, out_channels=width, featmap_strides=levels[:-1])
    for head in _members(roi.bbox_head):
        _fill(head, in_channels=width, num_classes=classes)
        if head.get('num_shared_convs'):
            _fill(head, conv_out_channels=width)
    for head in _members(roi.mask_head):
        _fill(head, in_channels=width, conv_out_channels=width, num_classes=classes)


def _wire_segmentor(model: dict, channels: list[int], strides: list[int], classes: int) -> None:
    _fill(model.decode_head, in_channels=channels, in_index=list(range(len(channels))),
          num_classes=classes)
    if model.get('auxiliary_head'):
        at = strides.index(16) if 16 in strides else len(strides) - 1
        _fill(model.auxiliary_head, in_channels=channels[at], in_index=at, num_classes=classes)


def fingerprint(cfg: Config) -> str:
    """Hash of everything in a config that decides a result; where the data and the work
    dir lie does not."""
    content = cfg.to_dict()
    for key in ('work_dir', 'launcher', 'resume', 'load_from', 'data_root', 'visualizer'):
        content.pop(key, None)
    text = json.dumps(content, sort_keys=True, default=str)
    if root := cfg.get('data_root'):
        text = text.replace(f'{root}/', 'data/')
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def scope(cfg: Config) -> DefaultScope:
    """The registry scope in which a config's bare names are looked up."""
    return DefaultScope.get_instance(cfg.default_scope, scope_name=cfg.default_scope)
