"""Evaluate a trained checkpoint: box and mask mAP, or mIoU."""
import sys

import _checkout  # noqa: F401
from suite.cli import add_config_arguments, add_run_arguments, guard, load_config, parser


def main():
    args = parser(__doc__, '''example:
  tools/test.py configs/swin/upernet_ade20k.py work_dirs/swin_tiny/upernet_ade20k/best.pth --tta''')
    add_config_arguments(args)
    add_run_arguments(args)
    args.add_argument('checkpoint', help='file of a training run')
    args.add_argument('--tta', action='store_true',
                      help='merge multi-scale and flipped views')
    args = args.parse_args()

    from suite import run
    run.test(load_config(args), args.checkpoint, args.work_dir, args.tta, args.launcher)


if __name__ == '__main__':
    sys.exit(guard(main))
