"""Train and evaluate a backbone under a protocol."""
import sys

import _checkout  # noqa: F401
from suite.cli import (
    add_config_arguments,
    add_run_arguments,
    add_training_arguments,
    guard,
    load_config,
    parser,
    training_flags,
)


def main():
    args = parser(__doc__, '''examples:
  tools/train.py configs/dilateformer/maskrcnn_coco.py --mini
  tools/train.py configs/maskrcnn_coco.py --backbone timm/convnext_tiny
  torchrun --nproc_per_node=8 tools/train.py configs/swin/upernet_ade20k.py --amp''')
    add_config_arguments(args)
    add_run_arguments(args)
    args.add_argument('--resume', nargs='?', const='auto', metavar='CKPT',
                      help='go on from CKPT, or from the newest checkpoint in the work dir')
    args.add_argument('--pretrained', metavar='FILE', help="checkpoint of the backbone's weights")
    args.add_argument('--pretraining', metavar='LABEL',
                      help='what they learned from, for the record, e.g. ImageNet-1K')
    add_training_arguments(args)
    args.add_argument('--tensorboard', action='store_true', help='log for TensorBoard too')
    args = args.parse_args()

    from suite import budget, flags, run
    cfg = load_config(args)
    flags.apply(cfg, **training_flags(args), pretrained=args.pretrained,
                pretraining=args.pretraining)
    budget.apply(cfg, args.budget, args.subset)
    run.train(cfg, args.work_dir, args.resume, args.tensorboard, args.launcher)


if __name__ == '__main__':
    sys.exit(guard(main))
