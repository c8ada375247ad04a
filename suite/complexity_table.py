"""Counted and published sizes as lines to read and as rows of a CSV file."""
from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from backbones import available, describe

from .agreement import HEADS, LIMIT, Figure, figures
from .complexity import BOXES, MASKS, Complexity, Size, need_size
from .hooks import write_text
from .survey import Survey, need_protocols

PROTOCOLS = ('maskrcnn_coco', 'cascade_coco', 'upernet_ade20k', 'upernet_kumar')
CONVENTION = f'''\
MACs = FLOPs / 2 of one image: every matrix product and convolution, those of attention included;
no norms, activations, softmax, pooling, interpolation or FFTs. Detectors: backbone, neck and RPN
once, each box head on {BOXES} regions, each mask head on {MASKS}, as mmdet 2's get_flops.py
counted; segmentors: backbone and decode head. Auxiliary heads have parameters only. M: million
parameters, G: 10^9 MACs, -: the network refuses the size.'''
BESIDE = f'''\
Published beside counted. M and G as published; bare: the official network without classifier,
which is ours to compare with; by: how much more is counted here; why: where that is more than
{LIMIT:.0%} and than the last published digit tells.'''


class Count(NamedTuple):
    """What was counted of a backbone, or of a protocol's model around it."""

    backbone: str
    protocol: str | None
    found: dict[Size, Complexity]


def show(names: Sequence[str], protocols: Sequence[str],
         sizes: Sequence[Size]) -> tuple[list[Count], list[Figure]]:
    """Count, and print: sizes as they are found, then what was published of them.

    Args:
        names: of backbones; none: all that are registered.
        protocols: whose whole models are counted too.
        sizes: H, W of images.

    Raises:
        UserError: a name is not known, or a side is shorter than 32 pixels.
    """
    need_protocols(protocols)
    for size in sizes:
        need_size(size)
    for name in names:
        describe(name)
    print(f'{CONVENTION}\n\n{head(sizes)}', flush=True)
    counted, found = [], []
    for name in tqdm(names or available(), disable=None, leave=False, dynamic_ncols=True):
        survey = Survey(name)
        for count in counts(survey, protocols, sizes):
            counted.append(count)
            tqdm.write(line(count))
        found += published(survey, protocols)
    if found:
        print(f'\n{BESIDE}\n')
        print(*beside(found), sep='\n')
    return counted, found


def counts(survey: Survey, protocols: Sequence[str], sizes: Sequence[Size]) -> Iterator[Count]:
    """The backbone and every protocol's model at every size."""
    for protocol in (None, *protocols):
        yield Count(survey.name, protocol, {size: survey.at(size, protocol) for size in sizes})


def published(survey: Survey, protocols: Sequence[str]) -> list[Figure]:
    """Figures of the classifier and of these protocols; all of them with those of ``PROTOCOLS``,
    also of heads that no protocol has."""
    heads = None if set(PROTOCOLS) <= set(protocols) else {
        head for head, (name, _) in HEADS.items() if name in protocols}
    return list(figures(survey, heads))


def head(sizes: Sequence[Size]) -> str:
    """The head of the table of counts."""
    return f'{"":<34}{"M":>9}' + ''.join(f'{f"G {h}x{w}":>12}' for h, w in sizes)


def line(count: Count) -> str:
    """A count as a line of its table."""
    name = f'  {count.protocol}' if count.protocol else count.backbone
    total = next(iter(count.found.values())).parameters
    return f'{name:<34}{_number(total / 1e6):>9}' + ''.join(
        f'{_number(one.macs and one.macs / 1e9):>12}' for one in count.found.values())


def beside(found: Sequence[Figure]) -> Iterator[str]:
    """The table of published figures, and how many of them agree."""
    yield (f'{"":<26}{"":<20}{"at":<10}{"M":>8}{"bare":>9}{"ours":>9}{"by":>8}'
           f'{"G":>9}{"ours":>10}{"by":>8}')
    for one in found:
        bare = one.official if one.head == 'classifier' else None
        ours = one.ours or Complexity(None, None)
        yield (f'{one.backbone:<26}{one.head:<20}{"x".join(map(str, one.size)):<10}'
               f'{_plain(one.parameters):>8}{_plain(bare):>9}'
               f'{_number(ours.parameters and ours.parameters / 1e6):>9}'
               f'{_percent(one.parameters_by):>8}{_plain(one.macs):>9}'
               f'{_number(ours.macs and ours.macs / 1e9):>10}{_percent(one.macs_by):>8}'
               f'  {one.source}')
        if one.reason or not one.agrees:
            yield f'    why: {one.reason or "not known"}'
    agreeing = sum(one.agrees and not one.reason for one in found)
    explained = sum(one.reason is not None for one in found)
    yield (f'{len(found)} published figures: {agreeing} within {LIMIT:.0%}, {explained} explained, '
           f'{len(found) - agreeing - explained} that differ for no known reason')


def write_csv(path: str, counted: Sequence[Count], found: Sequence[Figure]) -> None:
    """Everything as CSV, a row per model and size; the file is replaced whole."""
    names = ('backbone', 'model', 'height', 'width', 'parameters', 'macs', 'published_parameters',
             'published_macs', 'parameters_by', 'macs_by', 'source', 'reason')
    text = io.StringIO()
    rows = csv.DictWriter(text, names, lineterminator='\n', restval='')
    rows.writeheader()
    for one in counted:
        for (height, width), (total, macs) in one.found.items():
            rows.writerow(dict(backbone=one.backbone, model=one.protocol or 'backbone',
                               height=height, width=width, parameters=total, macs=macs))
    for one in found:
        total, macs = one.ours or (None, None)
        rows.writerow(dict(
            backbone=one.backbone, model=one.head, height=one.size[0], width=one.size[1],
            parameters=total, macs=macs, published_parameters=_times(one.parameters, 1e6),
            published_macs=_times(one.macs, 1e9), parameters_by=one.parameters_by,
            macs_by=one.macs_by, source=one.source, reason=one.reason))
    write_text(Path(path).expanduser(), text.getvalue())


def _times(value: float | None, unit: float) -> int | None:
    return None if value is None else round(value * unit)


def _plain(value: float | None) -> str:
    return '' if value is None else f'{value:g}'


def _number(value: float | None) -> str:
    """Four figures at least, and two decimals at most but for small ones."""
    if value is None:
        return '-'
    return f'{value:.3f}' if value < 10 else f'{value:.2f}'


def _percent(share: float | None) -> str:
    return '' if share is None else f'{share:+.1%}'
