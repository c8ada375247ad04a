"""Published figures, one file per system, as data: what papers and repositories state.

None of it was measured here; measured figures live in records (``suite.record``). A file
``SYSTEM.yaml``::

    system: Swin                       # registered name
    paper: Swin Transformer (Liu et al., ICCV 2021)
    arxiv: '2103.14030'
    code: microsoft/Swin-Transformer   # null where there is none
    reconstruction: true               # only where ours is one: it has no results, since the
                                       #    paper's are of another network
    networks:                          # a row per registered arch
      tiny:
        parameters: 28.3               # M, of the published classifier
        backbone: 27.52                # M, the official network as a dense backbone, without
                                       #    classifier (counted from the official code)
        macs: 4.5                      # G, of the published classifier
        size: 224                      # side of its input; 224 where it is not given
        counted: 4.49                  # G, only with `differs`: what tools/complexity.py counts
        differs: why the published MACs are more than 3 % away from ours
        source: README of microsoft/Swin-Transformer
    results:                           # a row per published result
      - arch: tiny
        head: Mask R-CNN               # classifier, Mask R-CNN, Cascade Mask R-CNN, UperNet, ...
        dataset: COCO                  # ImageNet-1K, COCO, ADE20K, ...
        pretraining: ImageNet-1K       # null: from scratch or not stated
        schedule: 1x                   # in the source's words
        size: 800x1333                 # image size in training or test, in the source's words
        parameters: 48                 # M, of the whole model
        macs: 264                      # G, of the whole model
        macs_size: 800x1280            # at which, where stated
        box: 43.7                      # metrics in per cent: top1, box, mask, miou, miou_ms,
                                       #    dice, aji, pq
        mask: 39.8
        source: README of SwinTransformer/Swin-Transformer-Object-Detection
        note: anything a reader must know
        differs: why parameters or MACs are more than 3 % away from what tools/complexity.py counts

Whatever a source does not state is left out. ``nuclei.yaml`` is of no backbone: its rows are
whole methods, with their name as arch, and it has no networks.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from backbones.errors import UserError, closest

FOLDER = Path(__file__).parent
METRICS = {'top1', 'box', 'mask', 'miou', 'miou_ms', 'dice', 'aji', 'pq'}
_TOP = {'system', 'paper', 'arxiv', 'code', 'networks', 'results'}
_FLAGS = {'reconstruction'}
_NETWORK = {'parameters', 'backbone', 'macs', 'size', 'counted', 'differs', 'source'}
_RESULT = {'arch', 'head', 'dataset', 'pretraining', 'schedule', 'size', 'parameters', 'macs',
           'macs_size', 'source', 'differs', 'note', *METRICS}
_NUMBERS = {'parameters', 'backbone', 'macs', 'counted', *METRICS}


def systems() -> list[str]:
    """Names of the files, that is the systems in lower case."""
    return sorted(path.stem for path in FOLDER.glob('*.yaml'))


def read(system: str) -> dict:
    """The published figures of a system, as the module's docstring lays them out.

    Args:
        system: registered name, in any case.

    Raises:
        UserError: there are none, or the file breaks the schema; says where.
    """
    if system.lower() not in systems():
        raise UserError(f'no published figures of {system!r}{closest(system, systems())}')
    path = FOLDER / f'{system.lower()}.yaml'
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f'{path}: not yaml ({" ".join(str(error).split())})') from error
    _check(path.name, content, _TOP | _FLAGS, needed=_TOP)
    for arch, network in content['networks'].items():
        place = f'{path.name}: networks.{arch}'
        _check(place, network, _NETWORK, needed={'backbone', 'source'})
        if ('counted' in network) != ('differs' in network):
            raise UserError(f'{place}: counted and differs belong together')
    for number, result in enumerate(content['results'], 1):
        place = f'{path.name}: result {number}'
        _check(place, result, _RESULT, needed={'arch', 'head', 'dataset', 'source'})
        if content['networks'] and result['arch'] not in content['networks']:
            raise UserError(f'{place}: there is no arch {result["arch"]!r}'
                            f'{closest(result["arch"], content["networks"])}')
        if not METRICS & result.keys():
            raise UserError(f'{place}: it has no metric; there are {", ".join(sorted(METRICS))}')
        if not 0 < min(result[name] for name in METRICS if name in result) < 100:
            raise UserError(f'{place}: metrics are in per cent')
    if content['results'] and content.get('reconstruction'):
        raise UserError(f"{path.name}: a reconstruction has no results: the paper's are of another "
                        'network')
    return content


def results() -> Iterator[dict]:
    """All published results of all systems, each with ``family``; a classifier without
    ``parameters`` or ``macs`` of its own, at the size of its network's, has those."""
    for system in systems():
        content = read(system)
        for result in content['results']:
            network = content['networks'].get(result['arch'], {})
            known = {key: network[key] for key in ('parameters', 'macs') if key in network}
            same = (result['head'] == 'classifier'
                    and result.get('size') == network.get('size', 224))
            yield {'family': content['system'], **(known if same else {}), **result}


def _check(place: str, content: object, known: set[str], needed: set[str]) -> None:
    if not isinstance(content, dict):
        raise UserError(f'{place}: not a mapping')
    if missing := sorted(needed - content.keys()):
        raise UserError(f'{place}: it lacks {", ".join(missing)}')
    for key, value in content.items():
        if key not in known:
            raise UserError(f'{place}: there is no {key!r}{closest(key, known)}')
        if key == 'source' and not (isinstance(value, str) and value.strip()):
            raise UserError(f'{place}: source must say where it stands, got {value!r}')
        if key in _NUMBERS and not isinstance(value, int | float):
            raise UserError(f'{place}: {key} must be a number, got {value!r}')
        if key in _FLAGS and value is not True:
            raise UserError(f'{place}: {key} is true or left out, got {value!r}')
