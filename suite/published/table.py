"""Published figures as Markdown: a row per system, or all results of one."""
from __future__ import annotations

from collections.abc import Iterator

from . import METRICS, read

# Column -> head, schedule (None: any), metrics.
COLUMNS = {
    'top-1': ('classifier', None, ('top1',)),
    'Mask R-CNN 1x': ('Mask R-CNN', '1x', ('box', 'mask')),
    '3x': ('Mask R-CNN', '3x multi-scale', ('box', 'mask')),
    'Cascade 3x': ('Cascade Mask R-CNN', '3x multi-scale', ('box', 'mask')),
    'UperNet': ('UperNet', '160k', ('miou', 'miou_ms')),
}
_DATASETS = ('ImageNet-1K', 'COCO', 'ADE20K')


def _row(system: str, arch: str) -> Iterator[str]:
    figures = read(system)
    reconstruction = ' (ours: a reconstruction)' * figures.get('reconstruction', False)
    yield f'{figures["system"]} {arch}{reconstruction}'
    yield figures['code'] or 'no public code'
    for head, schedule, metrics in COLUMNS.values():
        # From ImageNet-1K alone, at the size of pretraining: what all systems have.
        found = next((result for result in figures['results'] if result['arch'] == arch
                      and result['head'] == head and result['dataset'] in _DATASETS
                      and result.get('pretraining') in (None, 'ImageNet-1K')
                      and schedule in (None, result.get('schedule'))), {})
        yield ', '.join(str(found[name]) for name in metrics if name in found) or '-'


def summary(archs: dict[str, str]) -> str:
    """One row per system, for the arch given: results from ImageNet-1K pretraining."""
    return _markdown([['system', 'source', *COLUMNS],
                      *(list(_row(system, arch)) for system, arch in sorted(archs.items()))])


def everything(system: str) -> str:
    """All published results of a system."""
    columns = ('arch', 'head', 'dataset', 'pretraining', 'schedule', 'size', 'parameters', 'macs',
               *sorted(METRICS), 'source', 'note')
    results = read(system)['results']
    if not results:
        return f'{read(system)["system"]}: no results; ours is a reconstruction'
    used = [name for name in columns if any(name in result for result in results)]
    return _markdown([used, *([str(result.get(name, '')) for name in used] for result in results)])


def _markdown(rows: list[list[str]]) -> str:
    lines = [f'| {" | ".join(row)} |' for row in rows]
    return '\n'.join([lines[0], '|---' * len(rows[0]) + '|', *lines[1:]])
