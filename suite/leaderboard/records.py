"""The records below some folders: those that can stand in a table, and why others cannot."""
from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from backbones.errors import UserError
from suite.progress import NAMES
from suite.record import VERSION

# Metrics that rank, with the factor that makes them per cent. Where a run has several, the
# first ranks unless a reader chooses another.
METRICS = {'nuclei/pq': 100, 'nuclei/aji': 100, 'nuclei/dice': 100, 'coco/bbox_mAP': 100,
           'coco/segm_mAP': 100, 'mIoU': 1}
# When and how was measured.
AFTER = 'at the end of training'
TESTED = 'a checkpoint tested'
SEVERAL_VIEWS = 'a checkpoint tested with several views'
_NUMBER = (int, float)
_FIELDS = dict(task=str, settings_hash=str, family=str, backbone=str, reconstruction=bool,
               pretraining=str, protocol=str, mini=bool, schedule=str, seed=int, precision=str,
               world_size=int, parameters=int, backbone_parameters=int, commit=str, device=str,
               started=str, metrics=dict, peak_memory=dict)


class Group(NamedTuple):
    """What runs must share to be ranked together."""

    protocol: str
    schedule: str
    pretraining: str
    mini: bool
    evaluation: str

    def __str__(self) -> str:
        start = ('from scratch' if self.pretraining == 'none'
                 else f'pre-training: {self.pretraining}')
        later = '' if self.evaluation == AFTER else f', {self.evaluation}'
        return f'{self.protocol}: {self.schedule}, {start}{later}' + ' (MINI)' * self.mini


class Record(NamedTuple):
    """A record that counts."""

    path: Path
    content: dict

    @property
    def group(self) -> Group:
        fact = self.content
        # What is tested later may be any checkpoint, also one that was chosen by its score.
        evaluation = AFTER if fact['task'] == 'train' else SEVERAL_VIEWS if fact['tta'] else TESTED
        return Group(fact['protocol'], fact['schedule'], fact['pretraining'], fact['mini'],
                     evaluation)

    @property
    def settings(self) -> tuple:
        """What all seeds of a row share. Parameters, too: the code may have changed."""
        return (self.content['backbone'], self.content['settings_hash'],
                self.content['parameters'])


class LeftOut(NamedTuple):
    """A record that stands in no table."""

    path: Path
    reason: str


def collect(folders: Iterable[str | Path]) -> tuple[list[Record], list[LeftOut]]:
    """Read every ``record.json`` below the folders.

    Of runs of the same settings and seed in one group, the newest counts.

    Raises:
        UserError: a folder does not exist, or holds no record.
    """
    paths: dict[Path, None] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f'there is no folder {folder}; name one that holds work dirs of runs')
        found = sorted(folder.rglob('record.json'))
        if not found:
            raise UserError(f'no record.json below {folder}; train.py, test.py and sweep.py write '
                            'one into every work dir')
        paths |= dict.fromkeys(path.resolve() for path in found)
    counted, left_out = [], []
    for path in paths:
        try:
            counted.append(Record(path, read(path)))
        except ValueError as error:
            left_out.append(LeftOut(path, str(error)))
    newest: dict[tuple, Record] = {}
    # Of equal dates (a copy), the first path stays.
    for record in sorted(counted, key=lambda record: record.content['started'], reverse=True):
        key = (record.group, record.settings, record.content['seed'])
        stays = newest.setdefault(key, record)
        if stays is not record:
            left_out.append(LeftOut(record.path, f'a duplicate, with the same settings and seed as '
                                    f'{stays.path}, which is newer or its copy'))
    kept = {record.path for record in newest.values()}
    return ([record for record in counted if record.path in kept],
            sorted(left_out, key=lambda out: out.path))


def read(path: Path) -> dict:
    """A record that is complete and sound.

    Raises:
        ValueError: it is not; says why.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f'cannot be read ({error.strerror})') from error
    except ValueError as error:
        raise ValueError(f'truncated, or no JSON ({error})') from error
    if not isinstance(content, dict):
        raise ValueError('no record: the file holds no mapping')
    if content.get('version') != VERSION:
        raise ValueError(f'of version {content.get("version", 1)}; only version {VERSION} is read')
    status = content.get('status')
    if status != 'completed':
        raise ValueError({'running': 'not completed: still running, or killed',
                          'failed': f'failed: {content.get("error", "no reason noted")}',
                          'interrupted': 'interrupted'}.get(status, f'of status {status!r}'))
    _check_fields(content)
    _check_metrics(content['metrics'])
    return content


def _check_fields(content: dict) -> None:
    fields = _FIELDS | (dict(tta=bool) if content.get('task') == 'test' else {})
    if missing := [name for name in fields if name not in content]:
        raise ValueError(f'it lacks {", ".join(missing)}')
    for name, kind in fields.items():
        if type(content[name]) is not kind:
            raise ValueError(f'{name} is no {kind.__name__}: {content[name]!r}')
    if content['task'] not in ('train', 'test'):
        raise ValueError(f'of task {content["task"]!r}')
    if 'unknown' in (content['schedule'], content['pretraining']):
        raise ValueError('how its checkpoint was trained is not known (no record lay beside it): '
                         'it compares with nothing')
    speed, macs, memory = (content.get(name) for name in ('images_per_second', 'macs',
                                                          'peak_memory'))
    if speed is not None and not _positive(speed):
        raise ValueError(f'images_per_second is {speed!r}')
    if not _positive(memory.get('mib')) or not isinstance(memory.get('kind'), str):
        raise ValueError(f'peak_memory is {memory!r}')
    if macs is not None:
        size = macs.get('size') if isinstance(macs, dict) else None
        if not (isinstance(size, list) and len(size) == 2 and all(map(_positive, size)) and all(
                macs.get(part) is None or _positive(macs[part]) for part in ('model', 'backbone'))):
            raise ValueError(f'macs is {macs!r}')


def _check_metrics(metrics: dict) -> None:
    for name, value in metrics.items():
        if type(value) not in _NUMBER or not math.isfinite(value):
            raise ValueError(f'{name} is {value!r}')
    if not any(name in metrics for name in METRICS):
        raise ValueError(f'it has none of the metrics that rank: '
                         f'{", ".join(NAMES[name] for name in METRICS)}')
    for name, factor in METRICS.items():
        if not 0 <= metrics.get(name, 0) * factor <= 100:
            raise ValueError(f'{name} is {metrics[name]!r}, which is no score')


def _positive(value: object) -> bool:
    return type(value) in _NUMBER and math.isfinite(value) and value > 0
