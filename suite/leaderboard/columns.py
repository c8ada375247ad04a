"""What a table of measured results shows, cell by cell: text for people, a value to sort by."""
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from suite.progress import NAMES

from .ranking import Board, Row, Score


class Cell(NamedTuple):
    text: str
    value: float | str | None = None  # None sorts last


class Column(NamedTuple):
    title: str
    cell: Callable[[Row], Cell]
    numeric: bool = True
    metric: str | None = None
    sortable: bool = True


def number(value: float | None, digits: int | None = None) -> Cell:
    """With that many decimals; by default one, or two below 10."""
    if value is None:
        return Cell('-')
    digits = (1 if value >= 10 else 2) if digits is None else digits
    return Cell(f'{value:,.{digits}f}', value)


def word(text: str) -> Cell:
    return Cell(text, text.lower())


def score(found: Score | None, seeds: int = 1) -> Cell:
    """'45.12 ± 0.10'; where fewer seeds than the row's have the metric, with their number."""
    if found is None:
        return Cell('-')
    spread = '' if found.std is None else f' ± {found.std:.2f}'
    return Cell(f'{found.mean:.2f}{spread}' + f' (of {found.n})' * (found.n < seeds), found.mean)


def commit(row: Row) -> str:
    short = [name[:7] + '+changes' * name.endswith('+changes') for name in row.facts('commit')]
    return ', '.join(dict.fromkeys(short))


def name(row: Row) -> str:
    """A row's name, with a star at our reconstructions."""
    return row.label + '*' * row.fact('reconstruction')


def shared(board: Board) -> dict[str, str]:
    """What is the same in all rows and stands above a table instead of in a column."""
    asked = {'MACs at': {row.macs_size for row in board.rows if row.macs_size},
             'machine': {row.machine for row in board.rows},
             'memory': {row.memory_kind for row in board.rows}}
    return {title: found.pop() for title, found in asked.items() if len(found) == 1}


def columns(board: Board) -> list[Column]:
    """The columns of a board, without rank and links to records."""
    same = shared(board)

    def macs(row: Row) -> Cell:
        cell = number(row.macs.get('model') and row.macs['model'] / 1e9)
        at = '' if 'MACs at' in same or cell.value is None else f' at {row.macs_size}'
        return Cell(cell.text + at, cell.value)

    def memory(row: Row) -> Cell:
        cell = number(row.memory / 1024, 2)
        return Cell(cell.text + ('' if 'memory' in same else f' {row.memory_kind}'), cell.value)

    def scored(metric: str) -> Callable[[Row], Cell]:
        return lambda row: score(row.score(metric), len(row.records))

    return [
        Column('backbone', lambda row: word(name(row)), numeric=False),
        Column('family', lambda row: word(row.fact('family')), numeric=False),
        *(Column(NAMES[metric], scored(metric), metric=metric) for metric in board.metrics),
        Column('parameters, M', lambda row: number(row.fact('parameters') / 1e6)),
        Column('MACs, G', macs),
        Column('images/s', lambda row: number(row.speed, 2)),
        *([] if 'machine' in same else
          [Column('device, precision', lambda row: word(row.machine), numeric=False)]),
        Column('memory, GiB', memory),
        Column('commit', lambda row: word(commit(row)), numeric=False),
        Column('date', lambda row: word(row.fact('started')[:10]), numeric=False),
    ]
