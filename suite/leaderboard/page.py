"""The leaderboard as one HTML file that needs nothing else: no network, no server."""
from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from suite import published
from suite.progress import NAMES

from .columns import Cell, Column, columns, number, score, shared, word
from .ranking import AXES, Board, Row
from .records import SEVERAL_VIEWS, Group, LeftOut
from .text import MINI, WHY, front_line, link

_HERE = Path(__file__).parent
# What a protocol's name says of the published results that lie beside it.
_HEADS = {'maskrcnn': 'Mask R-CNN', 'cascade': 'Cascade Mask R-CNN', 'upernet': 'UperNet'}
_DATASETS = {'coco': ('COCO', '1x'), 'ade20k': ('ADE20K', '160k'), 'kumar': ('Kumar', None),
             'consep': ('CoNSeP', None), 'cpm17': ('CPM-17', None)}
_METRICS = {'coco/bbox_mAP': 'box', 'coco/segm_mAP': 'mask', 'mIoU': 'miou', 'nuclei/dice': 'dice',
            'nuclei/aji': 'aji', 'nuclei/pq': 'pq'}
_TITLES = {'top1': 'top-1', 'box': 'box mAP', 'mask': 'mask mAP', 'miou': 'mIoU',
           'miou_ms': 'mIoU, several scales', 'dice': 'Dice', 'aji': 'AJI', 'pq': 'PQ'}
_NUMERIC = {'parameters, M', 'MACs, G', 'images/s', *_TITLES.values()}


def render(boards: Sequence[Board], left_out: Sequence[LeftOut], folder: Path) -> str:
    """The page, with links to records relative to ``folder``."""
    results = list(published.results())
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_HERE), autoescape=True,
                                     trim_blocks=True, lstrip_blocks=True)
    sections = [_section(board, results, folder) for board in boards]
    data = [dict(plots=_plots(board, results), key=_key(board.group), mini=board.group.mini)
            for board in boards]
    return environment.get_template('page.html').render(
        sections=sections, overview=_overview(boards, folder), why=WHY, mini=MINI,
        only_mini=all(board.group.mini for board in boards),
        published=_published(results), records=sum(len(row.records) for board in boards
                                                   for row in board.rows),
        left_out=[(os.path.relpath(out.path, folder.resolve()), out.reason) for out in left_out],
        # No name in the data may end the script element that holds it.
        data=Markup(json.dumps(data).replace('<', '\\u003c')),
        style=Markup((_HERE / 'page.css').read_text()),
        script=Markup((_HERE / 'page.js').read_text()), plotly=Markup(get_plotlyjs()))


def _key(group: Group) -> list[str]:
    """Head and data set of the published results beside a group; of an unknown protocol, none's."""
    head, _, rest = group.protocol.partition('_')
    dataset, _ = _DATASETS.get(rest.partition('_')[0], ('', None))
    return [_HEADS.get(head, '') if dataset in ('COCO', 'ADE20K') else 'its own', dataset]


def _section(board: Board, results: list[dict], folder: Path) -> dict:
    shown = columns(board)
    facts = dict(protocol=board.group.protocol, schedule=board.group.schedule)
    facts['pre-training'] = board.group.pretraining
    facts['evaluation'] = board.group.evaluation
    return dict(
        title=str(board.group), mini=board.group.mini, facts=facts | shared(board),
        metrics=[(metric, NAMES[metric]) for metric in board.metrics],
        fronts={metric: front_line(board, metric) for metric in board.metrics},
        table=dict(columns=shown, rows=[
            dict(cells=[column.cell(row) for column in shown], links=_links(row, folder),
                 family=row.fact('family')) for row in board.rows]))


def _links(row: Row, folder: Path) -> list[tuple[int, str]]:
    return [(record.content['seed'], link(record.path, folder)) for record in row.records]


def _overview(boards: Sequence[Board], folder: Path) -> dict:
    """All rows of all groups: to find a run, not to rank it, so that no score is a column."""
    rows = []
    for board in boards:
        common = {column.title: column for column in columns(board)}
        for row in board.rows:
            scores = ', '.join(f'{NAMES[metric]} {score(row.score(metric)).text}'
                               for metric in board.metrics)
            group = board.group
            cells = [common['backbone'].cell(row), common['family'].cell(row),
                     word(group.protocol + ' (MINI)' * group.mini), word(group.schedule),
                     word(group.pretraining), Cell(scores), common['parameters, M'].cell(row),
                     _macs(row), common['images/s'].cell(row), word(row.machine),
                     common['commit'].cell(row), common['date'].cell(row)]
            rows.append(dict(cells=cells, links=_links(row, folder), family=row.fact('family')))
    titles = ('backbone', 'family', 'protocol', 'schedule', 'pre-training', 'scores',
              'parameters, M', 'MACs, G', 'images/s', 'device, precision', 'commit', 'date')
    return dict(rows=rows, columns=[Column(title, word, title in _NUMERIC,
                                           sortable=title != 'scores') for title in titles])


def _macs(row: Row) -> Cell:
    cell = number(row.macs.get('model') and row.macs['model'] / 1e9)
    return cell if cell.value is None else Cell(f'{cell.text} at {row.macs_size}', cell.value)


def _published(results: list[dict]) -> dict:
    """All published results; ``key`` says beside which groups they are shown."""
    words = ('family', 'arch', 'head', 'dataset', 'pretraining', 'schedule', 'size')
    rows = []
    for result in results:
        cells = [word(str(result.get(key) or '-')) for key in words]
        cells += [Cell(str(result[key]), result[key]) if key in result else Cell('-')
                  for key in ('parameters', 'macs', *_TITLES)]
        source = result['source'] + (f'; {result["note"]}' if 'note' in result else '')
        rows.append(dict(cells=[*cells, word(source)], family=result['family'],
                         key=[result['head'], result['dataset']]))
    titles = [*words[:4], 'pre-training', *words[5:], 'parameters, M', 'MACs, G',
              *_TITLES.values(), 'source']
    return dict(columns=[Column(title, word, title in _NUMERIC) for title in titles], rows=rows)


def _plots(board: Board, results: list[dict]) -> dict:
    """Everything that the plots of a board draw, for each of its metrics."""
    rows = [dict(name=row.label, ours=row.fact('reconstruction'), values=[
        axis.value(row) for axis in AXES], conditions=[axis.condition(row) for axis in AXES])
        for row in board.rows]
    metrics = {}
    for metric in board.metrics:
        metrics[metric] = dict(
            name=NAMES[metric], ranks=board.ranks(metric),
            scores=[row.score(metric) for row in board.rows],
            fronts=[list(board.fronts(metric, axis).items()) for axis in AXES],
            published=[] if board.group.mini else _beside(board.group, metric, results))
    return dict(rows=rows, metrics=metrics, axes=[axis.title for axis in AXES])


def _beside(group: Group, metric: str, results: list[dict]) -> list[dict]:
    """Published results of the group's head, data set and schedule as points."""
    head, dataset = _key(group)
    schedule = ('3x multi-scale' if '3x' in group.protocol.split('_')
                else _DATASETS.get(group.protocol.split('_')[-1], (None, None))[1])
    key = _METRICS[metric]
    if key == 'miou' and group.evaluation == SEVERAL_VIEWS:
        key = 'miou_ms'
    return [dict(name=f'{result["family"]} {result["arch"]}', score=result[key],
                 values=[result.get('macs'), result.get('parameters'), None],
                 source=result['source'], pretraining=result.get('pretraining') or 'not stated',
                 size=result.get('macs_size') or 'a size not stated')
            for result in results if (result['head'], result['dataset']) == (head, dataset)
            and result.get('schedule') == schedule and key in result]
