"""The whole way: records in, three files out, and what to say of it."""
from __future__ import annotations

from collections.abc import Iterator, Sequence

from backbones.errors import UserError
from suite.hooks import write_text
from suite.progress import NAMES
from suite.run import use_work_dir

from . import page, text
from .columns import name, score
from .ranking import boards
from .records import collect


def write(folders: Sequence[str], out: str | None) -> Iterator[str]:
    """Write ``leaderboard.html``, ``.md`` and ``.csv`` into ``out``, by default the first
    folder; yields lines for people.

    Raises:
        UserError: no record counts, or ``out`` is not writable.
    """
    records, left_out = collect(folders)
    if not records:
        raise UserError(f'none of {len(left_out)} records can stand in a table; the first, '
                        f'{left_out[0].path}: {left_out[0].reason}')
    ranked = boards(records)
    folder = use_work_dir(out or folders[0], '--out')
    for suffix, content in (('md', text.markdown(ranked, left_out, folder)),
                            ('csv', text.table(ranked, folder)),
                            ('html', page.render(ranked, left_out, folder))):
        write_text(folder / f'leaderboard.{suffix}', content)
    for board in ranked:
        best, metric = board.rows[0], board.metrics[0]
        yield (f'{board.group}: {len(board.rows)} ranked, first by {NAMES[metric]} {name(best)} '
               f'with {score(best.score(metric)).text}')
    if left_out:
        yield f'not in the tables: {len(left_out)} of {len(records) + len(left_out)} records'
        yield from (f'  {out.path}: {out.reason}' for out in left_out)
    yield f'written: {folder}/leaderboard.html, .md and .csv'
