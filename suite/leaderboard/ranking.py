"""Rows from records, ranks within groups, and Pareto fronts."""
from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .records import METRICS, Group, Record


class Score(NamedTuple):
    """A metric over seeds, in per cent; ``std`` is that of a sample, None of one seed."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Row:
    """One backbone with one set of settings: its records differ by seed alone."""

    records: list[Record]
    label: str  # the backbone, with the hash of its settings where there are several

    def fact(self, name: str):
        """What the newest record says."""
        return self.records[-1].content[name]

    def facts(self, name: str) -> list:
        """What all records say, each value once."""
        return list(dict.fromkeys(record.content[name] for record in self.records))

    def score(self, metric: str) -> Score | None:
        values = [record.content['metrics'][metric] * METRICS[metric] for record in self.records
                  if metric in record.content['metrics']]
        if not values:
            return None
        return Score(statistics.fmean(values),
                     statistics.stdev(values) if len(values) > 1 else None, len(values))

    @property
    def machine(self) -> str:
        """What the runs computed on, and in which precision."""
        machines = {_machine(record.content) for record in self.records}
        return machines.pop() if len(machines) == 1 else 'several machines'

    @property
    def speed(self) -> float | None:
        """Images per second in training; None where not measured, or on several machines."""
        speeds = [record.content.get('images_per_second') for record in self.records]
        if None in speeds or self.machine == 'several machines':
            return None
        return statistics.fmean(speeds)

    @property
    def macs(self) -> dict:
        """Size (H, W), and MACs of backbone and whole model for one image of it."""
        return self.records[-1].content.get('macs') or dict(size=None, backbone=None, model=None)

    @property
    def macs_size(self) -> str:
        return ' x '.join(map(str, self.macs['size'] or ()))

    @property
    def memory(self) -> float:
        """Most memory that any of the runs held, in MiB."""
        return max(record.content['peak_memory']['mib'] for record in self.records)

    @property
    def memory_kind(self) -> str:
        return ', '.join(dict.fromkeys(record.content['peak_memory']['kind']
                                       for record in self.records))


def _machine(content: dict) -> str:
    several = f'{content["world_size"]} x ' * (content['world_size'] > 1)
    return f'{several}{content["device"]}, {content["precision"]}'


class Axis(NamedTuple):
    """What accuracy is plotted against. Only rows with an equal ``condition`` compete."""

    title: str
    value: Callable[[Row], float | None]
    condition: Callable[[Row], str]
    less_is_better: bool


AXES = (
    Axis('MACs (G)', lambda row: row.macs.get('model') and row.macs['model'] / 1e9,
         lambda row: row.macs_size, True),
    Axis('parameters (M)', lambda row: row.fact('parameters') / 1e6, lambda row: '', True),
    Axis('images/s in training', lambda row: row.speed, lambda row: row.machine, False),
)


@dataclass(frozen=True)
class Board:
    """Runs that are comparable, the best by the first metric first."""

    group: Group
    rows: list[Row]
    metrics: list[str]

    def ranks(self, metric: str) -> list[int | None]:
        """Place of every row, 1 the best; equal means share one; None without the metric."""
        means = [score and score.mean for score in (row.score(metric) for row in self.rows)]
        return [None if mean is None else
                1 + sum(other is not None and other > mean for other in means) for mean in means]

    def fronts(self, metric: str, axis: Axis) -> dict[str, list[int]]:
        """Rows on the Pareto front of each condition, by rising cost or speed."""
        found = {}
        for condition in dict.fromkeys(map(axis.condition, self.rows)):
            points = {place: (axis.value(row), row.score(metric).mean)
                      for place, row in enumerate(self.rows)
                      if axis.condition(row) == condition and axis.value(row) is not None
                      and row.score(metric)}
            on_it = front(list(points.values()), axis.less_is_better)
            found[condition] = sorted((list(points)[place] for place in on_it),
                                      key=lambda place: points[place])
        return {condition: places for condition, places in found.items() if places}


def front(points: Sequence[tuple[float, float]], less_is_better: bool) -> list[int]:
    """The points (x, y) that no other beats: none has y as high with a better x, or a higher
    y with an x as good."""
    sign = 1 if less_is_better else -1
    keys = [(sign * x, -y) for x, y in points]
    return [place for place, (x, y) in enumerate(keys)
            if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in keys)]


def boards(records: Iterable[Record]) -> list[Board]:
    """Group records, those with real data first."""
    groups: dict[Group, dict[tuple, list[Record]]] = {}
    for record in records:
        groups.setdefault(record.group, {}).setdefault(record.settings, []).append(record)
    return [_board(group, list(groups[group].values()))
            for group in sorted(groups, key=lambda group: (group.mini, group))]


def _board(group: Group, cells: list[list[Record]]) -> Board:
    names = [cell[0].content['backbone'] for cell in cells]
    rows = []
    for name, cell in zip(names, cells):
        settings = cell[0].content['settings_hash'][:8]
        rows.append(Row(sorted(cell, key=lambda record: record.content['started']),
                        name + f' [{settings}]' * (names.count(name) > 1)))
    metrics = [metric for metric in METRICS if any(row.score(metric) for row in rows)]
    rows.sort(key=lambda row: (-(row.score(metrics[0]) or Score(-1, None, 0)).mean, row.label))
    return Board(group, rows, metrics)
