"""From what a user names to a config that mmengine can run.

A protocol leaves the backbone open, and with it the channels of neck and heads, the
strides, and the number of classes; ``load`` fills in what follows. The result is
complete: it runs under stock mmengine tools, given ``custom_imports``.
"""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
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


def configured_archs() -> dict[str, str]:
    """System -> the arch that its Mask R-CNN config trains."""
    backbones = [Config.fromfile(path, lazy_import=False).model.backbone
                 for path in CONFIGS.glob('[!_]*/maskrcnn_coco.py')]
    return {cfg['type'].removeprefix('mmengine.'): cfg['arch'] for cfg in backbones}


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
        cfg = Config.fromfile(path, lazy_import=False)
    except Exception as error:  # a config is code, and can raise whatever code can
        reason = ' '.join(str(error).split())[:200]
        raise UserError(f'config {path} cannot be read ({type(error).__name__}: '
                        f'{reason})') from error
    if missing := [name for name in ('model', *DATALOADERS) if name not in cfg]:
        raise UserError(f'config {path} is no complete protocol: it lacks {", ".join(missing)}')
    if backbone is not None:
        cfg.model.backbone = ConfigDict(describe(backbone))
    if 'backbone' not in cfg.model:
        raise UserError(f'{path} leaves the backbone open: name one with --backbone'
                        f'{closest("", available())}; or timm/NAME')
    if mini and not cfg.get('mini'):
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
    a name, in all of its members that have it (the three heads of a cascade).

    The last part may be new, but not one slip away from a name that is there, and on the
    top level not the name of something deeper.

    Raises:
        UserError: any of this does not hold.
    """
    *way, last = key.split('.')
    owners = [cfg]
    for part in way:
        there, places = _find(owners, part)
        owners = [holder[name] for holder, name in there]
        if not owners:
            raise _unknown(key, part, places)
    there, places = _find(owners, last)
    if not there:
        if not way and (deeper := [name for name in _dotted(cfg) if name.endswith(f'.{last}')]):
            raise UserError(f'option {key!r}: did you mean {" or ".join(deeper)}?')
        if not places or any(_slip(last, name) for holder, _ in places for name in holder):
            raise _unknown(key, last, places)
    for holder, name in there or places:
        holder[name] = value


def _find(owners: list, part: str) -> tuple[list, list]:
    """Places (holder, key) where a part of a key stands, and where it might."""
    places = [place for owner in owners for place in _places(owner, part)]
    return [(holder, key) for holder, key in places
            if isinstance(key, int) or key in holder], places


def _places(owner, part: str) -> Iterator[tuple]:
    if isinstance(owner, dict | Config):
        yield owner, part
    elif isinstance(owner, list) and part.isdigit():
        if int(part) < len(owner):
            yield owner, int(part)
    elif isinstance(owner, list):
        for member in owner:
            yield from _places(member, part)


def _dotted(node: dict) -> Iterator[str]:
    for key, value in node.items():
        yield key
        if isinstance(value, dict):
            yield from (f'{key}.{name}' for name in _dotted(value))


def _slip(word: str, known: str) -> bool:
    """Whether two names differ by one letter, or by two that changed places."""
    start = len(os.path.commonprefix([word, known]))
    ours, theirs = word[start:], known[start:]
    return (ours[1:] == theirs[1:] or ours[1:] == theirs or ours == theirs[1:]
            or (ours[1::-1] == theirs[:2] and ours[2:] == theirs[2:]))


def _unknown(key: str, part: str, places: list) -> UserError:
    names = {name for holder, _ in places if isinstance(holder, dict | Config) for name in holder}
    hint = closest(part, names) if names else ''
    return UserError(f'option {key!r}: there is no {part!r}{hint}')


def shrink(cfg: Config) -> None:
    """Apply a protocol's own ``mini_...`` settings and the mini data's classes."""
    from .mini import KINDS
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
        kind = KINDS[Path(loader.dataset.data_root).parts[1]]
        # A list: mmdet takes a tuple for one colour.
        loader.dataset.metainfo = dict(classes=kind.classes, palette=list(kind.palette))


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
    name = str(settings.pop('type', None))
    cls = MODELS.get(f'mmengine.{name}' if '.' not in name else name)
    if cls is None:
        raise UserError(f'unknown backbone type {name!r}{closest(name, systems())}')
    try:
        with torch.device('meta'):
            net = cls(**settings)
    except TypeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'backbone {name} does not take {settings}: {reason}') from error
    if not hasattr(net, 'out_channels') or not hasattr(net, 'out_strides'):
        raise UserError(f'backbone {name} lacks out_channels and out_strides, from which neck and '
                        'heads follow; see backbones.base.Backbone')
    return net


def backbone_name(cfg: dict) -> str:
    """How people call a configured backbone: 'dilateformer_tiny', 'timm/convnext_tiny',
    'graft_swin_tiny'."""
    system = cfg['type'].removeprefix('mmengine.')
    if system == 'TimmBackbone':
        return f'timm/{cfg["name"]}'
    if 'host' in cfg:
        return f'{system.lower()}_{backbone_name(cfg["host"])}'
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


def _need_equal(part: dict, channels: list[int]) -> None:
    if list(part.in_channels) != channels:
        raise UserError(f'the config sets in_channels {list(part.in_channels)}, its backbone gives '
                        f'{channels}; start from a protocol, which leaves them open, rather than '
                        'from the config of an earlier run')


def _wire_detector(model: dict, channels: list[int], strides: list[int], classes: int) -> None:
    neck, width = model.neck, model.neck.out_channels
    _fill(neck, in_channels=channels)
    _need_equal(neck, channels)
    # FPN appends levels by halving; a backbone may bring some of its own.
    neck.num_outs = max(neck.num_outs, len(channels))
    levels = strides[:neck.num_outs]
    while len(levels) < neck.num_outs:
        levels.append(2 * levels[-1])
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
    if isinstance(taken := model.decode_head.in_index, list):
        _need_equal(model.decode_head, [channels[i] for i in taken])
    if model.get('auxiliary_head'):
        at = strides.index(16) if 16 in strides else len(strides) - 1
        _fill(model.auxiliary_head, in_channels=channels[at], in_index=at, num_classes=classes)


def fingerprint(cfg: Config, seed: bool = True) -> str:
    """Hash of everything in a config that decides a result; where the data and the work
    dir lie does not. Without ``seed``, that of all runs that differ in nothing else."""
    content = cfg.to_dict()
    for key in ('work_dir', 'launcher', 'resume', 'load_from', 'data_root', 'visualizer'):
        content.pop(key, None)
    if not seed:
        content['randomness'].pop('seed')
    text = json.dumps(content, sort_keys=True, default=str)
    if root := cfg.get('data_root'):
        text = text.replace(json.dumps(f'{root}/')[1:-1], 'data/')
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def scope(cfg: Config) -> AbstractContextManager:
    """A context in which a config's bare names are looked up in its registry scope."""
    return DefaultScope.overwrite_default_scope(cfg.default_scope)
