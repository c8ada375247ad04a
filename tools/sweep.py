"""Train several backbones under the same protocols, and print one table."""
import sys
from pathlib import Path

import _checkout  # noqa: F401
from suite.cli import add_training_arguments, guard, parser


def main():
    args = parser(__doc__, '''examples:
  tools/sweep.py dilateformer_tiny convnext_tiny --mini --amp
  tools/sweep.py configs/sweeps/mini_matrix.yaml --jobs 2    (its keys: these arguments)
The same command goes on where it was stopped or killed; what is completed is not run again.''')
    args.add_argument('backbones', nargs='+', metavar='NAME',
                      help="e.g. swin_tiny; 'all': each system's smallest; or one YAML file")
    args.add_argument('--protocols', nargs='+', default=['maskrcnn_coco'], metavar='NAME')
    args.add_argument('--seeds', nargs='+', type=int, default=[0], metavar='N')
    args.add_argument('--mini', action='store_true', help='small synthetic data')
    add_training_arguments(args)
    args.add_argument('--data-root', metavar='DIR', help='holds coco/, ade/, kumar/, ...')
    args.add_argument('--work-dir', default='work_dirs/sweep', metavar='DIR',
                      help='folder for all results (default: work_dirs/sweep)')
    args.add_argument('--cfg-options', nargs='+', action='extend', default=[],
                      metavar='KEY=VALUE', help='for all of them')
    args.add_argument('--executor', choices=('local', 'slurm', 'ray'), default='local')
    args.add_argument('--jobs', type=int, metavar='N',
                      help='runs at a time (default: local, as many as GPUs or cores allow)')
    args.add_argument('--gpus', type=int, metavar='N',
                      help='per run (default: 1 where this machine has any)')
    args.add_argument('--retries', type=int, default=1, metavar='N', help='of a failed run')
    args.add_argument('--partition', metavar='NAME', help='Slurm')
    args.add_argument('--hours', type=float, default=24, help='Slurm: limit of a run')
    args.add_argument('--address', help='of a Ray cluster (default: one is started here)')
    args.parse_args()  # --help and slips end here, before anything slow

    from suite.sweep.plan import read
    args = read(args, sys.argv[1:])

    from suite.run import use_work_dir
    from suite.sweep.session import run
    return run(args, Path(use_work_dir(args.work_dir)))


if __name__ == '__main__':
    sys.exit(guard(main))
