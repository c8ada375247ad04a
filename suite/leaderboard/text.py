"""The leaderboard as Markdown and as CSV."""
from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from suite.progress import NAMES

from .columns import columns, commit, name, score, shared
from .ranking import AXES, Board, Row
from .records import METRICS, LeftOut

MINI = 'synthetic data: says that a protocol learns, not how good a backbone is'
WHY = ('Ranked together is only what is comparable: the same protocol, schedule, pre-training, '
       'kind of data and evaluation. Scores are in per cent, ± is the standard deviation over '
       'seeds. * marks our reconstructions of networks without public code.')


def link(path: Path, folder: Path) -> str:
    """URL of a record, relative to the folder of the page."""
    return quote(Path(os.path.relpath(path, folder.resolve())).as_posix())


def front_line(board: Board, metric: str) -> list[str]:
    """Who is on the Pareto fronts, in words."""
    lines = []
    for axis in AXES:
        for condition, places in board.fronts(metric, axis).items():
            where = f' ({condition})' * bool(condition)
            lines.append(f'{axis.title}{where}: '
                         + ', '.join(board.rows[place].label for place in places))
    return lines


def markdown(boards: Sequence[Board], left_out: Sequence[LeftOut], folder: Path) -> str:
    """A table per group, with links to records relative to ``folder``."""
    parts = ['# Leaderboard', WHY]
    if len(boards) > 1:
        parts.append('## All groups side by side, not ranked (M: parameters of the backbone, '
                     'million)')
        parts.append(overview(boards))
    for board in boards:
        parts.append(f'## {board.group}')
        if board.group.mini:
            parts.append(f'**MINI**: {MINI}.')
        facts = [f'{title}: {text}' for title, text in shared(board).items()]
        parts.append(f'Ranked by {NAMES[board.metrics[0]]}. ' + '; '.join(facts))
        parts.append(_table(board, folder))
        fronts = '\n'.join(f'- {line}' for line in front_line(board, board.metrics[0]))
        parts.append(f'Pareto fronts of {NAMES[board.metrics[0]]}:\n\n{fronts}')
    if left_out:
        parts.append('## Not in the tables')
        parts.append('\n'.join(f'- {_plain(os.path.relpath(out.path, folder.resolve()))}: '
                               f'{_plain(out.reason)}' for out in left_out))
    return '\n\n'.join(parts) + '\n'


def overview(boards: Sequence[Board]) -> str:
    """Every backbone's scores in every group, side by side: to see what there is, not to rank.
    Groups are numbered, and their columns bear the numbers."""
    columns = [(number, metric) for number, board in enumerate(boards, 1)
               for metric in board.metrics]
    cells: dict[str, dict] = {}
    for number, board in enumerate(boards, 1):
        for row in board.rows:
            mine = cells.setdefault(name(row), {})
            mine['size'] = f'{row.fact("backbone_parameters") / 1e6:.1f}'
            mine |= {(number, metric): score(row.score(metric), len(row.records)).text
                     for metric in board.metrics}
    titles = ['backbone', 'M', *(f'{number}: {NAMES[metric]}' for number, metric in columns)]
    lines = [f'| {" | ".join(titles)} |', '|---' * len(titles) + '|']
    for backbone, mine in sorted(cells.items()):
        scores = [mine.get(column, '-') for column in columns]
        lines.append(f'| {" | ".join([_plain(backbone), mine["size"], *scores])} |')
    return '\n'.join([*(f'{number}. {board.group}' for number, board in enumerate(boards, 1)), '',
                      *lines])


def _table(board: Board, folder: Path) -> str:
    shown = columns(board)
    head = ['rank', *(column.title for column in shown), 'records by seed']
    lines = [f'| {" | ".join(head)} |', '|---' * len(head) + '|']
    for rank, row in zip(board.ranks(board.metrics[0]), board.rows):
        links = ', '.join(f'[{record.content["seed"]}]({link(record.path, folder)})'
                          for record in row.records)
        cells = [str(rank or '-'), *(_plain(column.cell(row).text) for column in shown), links]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def _plain(text: str) -> str:
    return ' '.join(text.replace('|', '\\|').split())


def table(boards: Sequence[Board], folder: Path) -> str:
    """All rows as CSV, plain numbers; ranks hold within a group, by the column ``ranked by``."""
    metrics = [metric for metric in METRICS if any(metric in board.metrics for board in boards)]
    rows = []
    for board in boards:
        for rank, row in zip(board.ranks(board.metrics[0]), board.rows):
            height, width = row.macs['size'] or (None, None)
            rows.append({
                **board.group._asdict(), 'ranked by': NAMES[board.metrics[0]],
                'rank in group': rank, 'family': row.fact('family'),
                'backbone': row.label, 'reconstruction': row.fact('reconstruction'),
                'settings': row.fact('settings_hash'),
                'seeds': ' '.join(str(record.content['seed']) for record in row.records),
                **_scores(row, metrics),
                'parameters': row.fact('parameters'),
                'backbone parameters': row.fact('backbone_parameters'),
                'MACs': row.macs.get('model'), 'backbone MACs': row.macs.get('backbone'),
                'MACs height': height, 'MACs width': width, 'images per second': row.speed,
                'device, precision': row.machine, 'memory MiB': row.memory,
                'memory kind': row.memory_kind, 'commit': commit(row),
                'date': row.fact('started')[:10],
                'records': ' '.join(link(record.path, folder) for record in row.records)})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _scores(row: Row, metrics: Sequence[str]) -> dict:
    cells = {}
    for metric in metrics:
        mean, std, seeds = row.score(metric) or (None, None, None)
        cells[NAMES[metric]] = mean and round(mean, 4)
        cells[f'{NAMES[metric]} std'] = std and round(std, 4)
        cells[f'{NAMES[metric]} seeds'] = seeds
    return cells
