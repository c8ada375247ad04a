"""Published parameters and MACs beside ours: which agree within 3 %, and why others do not."""
from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from backbones import describe

from . import published
from .complexity import Complexity, Size
from .survey import Survey

LIMIT = 0.03
# Published head -> the protocol that has it here, and H, W at which papers count it.
HEADS = {'Mask R-CNN': ('maskrcnn_coco', (800, 1280)),
         'Cascade Mask R-CNN': ('cascade_coco', (800, 1280)),
         'UperNet': ('upernet_ade20k', (512, 2048))}


class Figure(NamedTuple):
    """A published size of a network beside what was counted.

    Args:
        backbone: its name, 'swin_tiny'.
        head: 'classifier', of which we have the backbone, 'Mask R-CNN', ...
        size: H, W of the image.
        parameters: published, in M, or None.
        official: parameters to compare with, in M: the whole model's, or the official network's
            without its classifier; None where no such network is known.
        macs: published, in G, or None.
        ours: counted; None where no protocol has such a head.
        source: of what was published.
        reason: why it differs, or None.
    """

    backbone: str
    head: str
    size: Size
    parameters: float | None
    official: float | None
    macs: float | None
    ours: Complexity | None
    source: str
    reason: str | None

    @property
    def parameters_by(self) -> float | None:
        """By which share our parameters are more."""
        return self.ours and self.official and self.ours.parameters / 1e6 / self.official - 1

    @property
    def macs_by(self) -> float | None:
        """By which share our MACs are more."""
        return (self.ours and self.macs and self.ours.macs and
                self.ours.macs / 1e9 / self.macs - 1)

    @property
    def agrees(self) -> bool:
        """Whether both are within 3 %, or nearer than the published digits tell."""
        return self.ours is not None and all(
            by is None or abs(by) <= max(LIMIT, rounding(value) / value)
            for by, value in ((self.parameters_by, self.official), (self.macs_by, self.macs)))


def rounding(value: float) -> float:
    """Half of a published number's last digit, of its first decimal for whole ones."""
    return 0.5 * 10. ** -len(str(float(value)).partition('.')[2])


def figures(survey: Survey, heads: Collection[str] | None = None) -> Iterator[Figure]:
    """What was published about the size of a backbone, and of models around it.

    Results that repeat one another's numbers are one figure. timm's own models have none.

    Args:
        heads: those of interest besides the classifier; None: all, also those that no protocol
            has here.
    """
    about = describe(survey.name)
    if 'arch' not in about:
        return
    system, arch = published.read(about['type']), about['arch']
    reconstruction = system.get('reconstruction', False)
    network = system['networks'][arch]
    # A classifier's parameters are the network's; its MACs may be of another size.
    rows = [dict(network, head='classifier', size=network.get('size', 224)),
            *(row for row in system['results'] if row['arch'] == arch and (
                'macs' in row if row['head'] == 'classifier'
                else heads is None or row['head'] in heads))]
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        stated = row.get('parameters'), row.get('macs')
        # Of an official network, its size as a backbone is known even where none is published.
        if stated != (None, None) or 'backbone' in row and not reconstruction:
            key = row['head'], _size(row), row['head'] != 'classifier' and stated[0], stated[1]
            groups.setdefault(key, []).append(row)
    for (head, size, _, macs), group in groups.items():
        first = group[0]
        reason = next((row['differs'] for row in group if 'differs' in row), None)
        protocol = HEADS[head][0] if head in HEADS else None
        ours = None
        if head in ('classifier', *HEADS):
            ours = survey.at(size, protocol)
        else:
            reason = reason or 'no protocol here has this head'
        official = network['backbone'] if head == 'classifier' else first.get('parameters')
        if reconstruction:
            official, reason = None, 'not of this network, which is our reconstruction'
        yield Figure(survey.name, head, size, first.get('parameters'), official, macs, ours,
                     first['source'], reason)


def _size(row: dict) -> Size:
    """H, W at which a published row is counted, as far as it says so."""
    stated = [int(side) for side in re.findall(r'\d+', str(row.get('macs_size', '')))]
    sides = [int(side) for side in re.findall(r'\d+', str(row.get('size', '')))]
    if len(stated) == 2:
        return stated[0], stated[1]
    if row['head'] == 'UperNet' and sides:
        return sides[0], 4 * sides[0]
    if len(sides) == 1:
        return sides[0], sides[0]
    return HEADS.get(row['head'], (None, (224, 224)))[1]
