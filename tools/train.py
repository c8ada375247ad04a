"""Train and evaluate a backbone under a protocol."""
import sys

import _checkout  # noqa: F401
from suite.cli import add_config_arguments, add_run_arguments, guard, load_config, parser


def main():
    args = parser(__doc__, '''examples:
  tools/train.py configs/dilateformer/maskrcnn_coco.py --mini
  tools/train.py configs/maskrcnn_coco.py --backbone timm/convnext_tiny
  torchrun --nproc_per_node=8 tools/train.py configs/swin/upernet_ade20k.py --amp''')
    add_config_arguments(args)
    add_run_arguments(args)
    args.add_argument('--resume', nargs='?', const='auto', metavar='CKPT',
                      help='go on from CKPT, or from the newest checkpoint in the work dir')
    args.add_argument('--amp', action='store_true',
                      help='mixed precision (bfloat16 where supported)')
    args.add_argument('--tensorboard', action='store_true', help='log for TensorBoard too')
    args = args.parse_args()

    from suite import run
    run.train(load_config(args), args.work_dir, args.resume, args.amp, args.tensorboard,
              args.launcher)


if __name__ == '__main__':
    sys.exit(guard(main))
