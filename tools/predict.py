"""Draw a trained model's predictions for pictures, and write them as json."""
import sys

import _checkout
from suite.cli import add_config_arguments, guard, load_config, parser


def main():
    args = parser(__doc__, '''example:
  tools/predict.py configs/swin/maskrcnn_coco.py best.pth holiday.jpg --out drawn
  tools/predict.py configs/dilateformer/maskrcnn_kumar.py iter_16000.pth slides/ --out nuclei''')
    add_config_arguments(args)
    args.add_argument('checkpoint', help='file of a training run')
    args.add_argument('source', help='a picture, or a folder of pictures')
    args.add_argument('--out', metavar='DIR', default=str(_checkout.ROOT / 'work_dirs/predictions'),
                      help='folder for the results (default: work_dirs/predictions)')
    args.add_argument('--score', type=float, metavar='S',
                      help='leave out instances below this score (default: 0.3; of nuclei, '
                           'model.test_cfg.score)')
    args = args.parse_args()

    from suite import predict
    predict.predict(load_config(args), args.checkpoint, args.source, args.out, args.score)


if __name__ == '__main__':
    sys.exit(guard(main))
