"""Train several backbones under the same protocols, and print one table."""
import os
import sys
from pathlib import Path

import _checkout  # noqa: F401
from suite.cli import guard, parser


def main():
    args = parser(__doc__, '''examples:
  tools/sweep.py dilateformer_tiny convnext_tiny --protocols maskrcnn_coco --mini --amp
Cells that are completed are not run again; one that was broken off goes on.''')
    args.add_argument('backbones', nargs='+', metavar='NAME',
                      help="e.g. swin_tiny, timm/convnext_tiny; 'all': each system's smallest")
    args.add_argument('--protocols', nargs='+', default=['maskrcnn_coco'], metavar='NAME')
    args.add_argument('--seeds', nargs='+', type=int, default=[0], metavar='N')
    args.add_argument('--mini', action='store_true', help='small synthetic data')
    args.add_argument('--amp', action='store_true', help='mixed precision')
    args.add_argument('--data-root', metavar='DIR',
                      help='folder that holds coco/, ade/, kumar/, ...')
    args.add_argument('--work-dir', default='work_dirs/sweep', metavar='DIR',
                      help='folder for all results (default: work_dirs/sweep)')
    args.add_argument('--jobs', type=int, default=os.cpu_count(), metavar='N',
                      help='runs at a time (default: one per core), of one thread each')
    args.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
                      help='for all of them')
    args = args.parse_args()

    from backbones.registry import smallest
    from suite import sweep
    from suite.run import use_work_dir
    names = [name for word in args.backbones
             for name in (smallest() if word == 'all' else [word])]
    settings = sweep.Settings(args.mini, args.amp, args.data_root, tuple(args.cfg_options))
    todo = sweep.cells(names, args.protocols, args.seeds)
    root = Path(use_work_dir(args.work_dir))
    print(f'{len(todo)} runs, {args.jobs} at a time; results go to {root}', flush=True)
    done = {}
    for cell, record in sweep.sweep(todo, settings, root, args.jobs):
        done[cell] = record
        print(f'[{len(done)}/{len(todo)}] {sweep.line(cell, record)}', flush=True)
    table = sweep.table(done)
    (root / 'table.md').write_text(table + '\n')
    print(f'\n{table}')
    return int(any(record.get('status') != 'completed' for record in done.values()))


if __name__ == '__main__':
    sys.exit(guard(main))
