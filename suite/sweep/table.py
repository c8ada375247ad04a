"""What a sweep found, in lines and in a table."""
from __future__ import annotations

from collections.abc import Iterator

from suite.progress import clock, summary

from .cells import Cell


def line(cell: Cell, record: dict) -> str:
    """How a cell ended, in one line."""
    if record.get('status') != 'completed':
        return f'{cell}  {record.get("status")}: {record.get("error", "no record")}'
    return f'{cell}  {summary(record["metrics"])}  in {clock(record["wall_seconds"])}'


def table(done: dict[Cell, dict]) -> str:
    """Completed cells of one sweep as a Markdown table, metrics in [0, 1]."""
    completed = {cell: record for cell, record in done.items()
                 if record.get('status') == 'completed'}
    if not completed:
        return 'no cell was completed'
    rows = []
    for cell, record in sorted(completed.items(), key=lambda item: str(item[0])):
        backbone = cell.backbone + ' (a reconstruction)' * record.get('reconstruction', False)
        rows.append({'backbone': backbone, 'protocol': cell.protocol, 'seed': str(cell.seed),
                     'parameters': f'{record["parameters"] / 1e6:.1f} M',
                     **dict(_headline(record['metrics'])),
                     'iterations': str(record['history'][-1]['iteration']),
                     'seconds': f'{record["wall_seconds"]:.0f}'})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    # What is the same everywhere is a title, not a column.
    fixed = [name for name in ('protocol', 'seed') if len({row[name] for row in rows}) == 1]
    shown = [name for name in columns if name not in fixed]
    lines = [', '.join(f'{name} {rows[0][name]}' for name in fixed) + '\n'] if fixed else []
    lines += [f'| {" | ".join(shown)} |', '|---' * len(shown) + '|']
    return '\n'.join(lines + [f'| {" | ".join(row.get(name, "") for name in shown)} |'
                              for row in rows])


def _headline(metrics: dict) -> Iterator[tuple[str, str]]:
    # ``summary`` says which metrics count and in which unit; a table needs the main ones.
    for part in summary(metrics).split('  '):
        name, _, value = part.rpartition(' ')
        if name in ('Dice', 'AJI', 'PQ') or name.endswith(('mAP', 'mIoU')):
            yield name, value
