"""Parameters and multiply-accumulates of backbones and of whole detectors and segmentors, counted
without computing, and beside them what was published."""
import sys

import _checkout  # noqa: F401
from suite.cli import guard, need_writable, parser


def main():
    args = parser(__doc__, '''examples:
  tools/complexity.py                  everything, in some minutes
  tools/complexity.py swin_tiny --protocol maskrcnn_coco --size 800 1280
  tools/complexity.py convnext_tiny timm/convnext_tiny --protocol''')
    args.add_argument('backbones', nargs='*', metavar='NAME',
                      help='e.g. swin_tiny, timm/convnext_tiny; default: all that are registered')
    args.add_argument('--protocol', nargs='*', metavar='NAME',
                      help='whole models, by protocols of configs/; none: backbones alone '
                      '(default: maskrcnn_coco cascade_coco upernet_ade20k upernet_kumar)')
    args.add_argument('--size', type=int, nargs=2, action='append', metavar=('H', 'W'),
                      help='image size, again for more (default: 224 224, 512 512, 800 1280, '
                      '512 2048)')
    args.add_argument('--csv', metavar='FILE', help='write everything, replacing the file')
    args = args.parse_args()

    from suite import complexity_table as table
    from suite.complexity import SIZES
    need_writable(args.csv, '--csv')
    protocols = table.PROTOCOLS if args.protocol is None else args.protocol
    sizes = [tuple(size) for size in args.size or SIZES]
    counted, figures = table.show(args.backbones, protocols, sizes)
    if args.csv:
        table.write_csv(args.csv, counted, figures)


if __name__ == '__main__':
    sys.exit(guard(main))
