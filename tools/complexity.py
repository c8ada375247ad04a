"""Parameters and multiply-accumulates of backbones, without computing."""
import sys

import _checkout  # noqa: F401
from suite.cli import guard, parser


def main():
    args = parser(__doc__, 'MACs = FLOPs / 2 of every matrix product and convolution, those of '
                  'attention included.')
    args.add_argument('backbones', nargs='*', metavar='NAME',
                      help='e.g. swin_tiny, timm/convnext_tiny; default: all that are registered')
    args.add_argument('--size', type=int, nargs=2, action='append', metavar=('H', 'W'),
                      help='image size, again for more (default: 224 224, 512 512, 800 1280)')
    args = args.parse_args()

    import backbones
    from suite.complexity import SIZES, of_backbone
    sizes = [tuple(size) for size in args.size or SIZES]
    print(f'{"backbone":<28}{"parameters":>14}' +
          ''.join(f'{f"GMACs {h}x{w}":>17}' for h, w in sizes))
    for name in args.backbones or backbones.available():
        found = [of_backbone(name, size) for size in sizes]
        print(f'{name:<28}{found[0].parameters / 1e6:>12.2f} M' +
              ''.join(f'{one.macs / 1e9:>17.3f}' if one.macs else f'{"-":>17}' for one in found),
              flush=True)


if __name__ == '__main__':
    sys.exit(guard(main))
