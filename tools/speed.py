"""Time and memory of backbones, forward and forward+backward, measured in turns."""
import sys

import _checkout  # noqa: F401
from suite.cli import Options, guard, parser


def main():
    args = parser(__doc__, '''examples:
  tools/speed.py convnext_tiny --against timm/convnext_tiny
  tools/speed.py levit_128s --against timm/levit_128s --against-options img_size=512
The ratio is the time of the other one over ours: above 1, ours is faster. Seconds of one
machine say little about another; the ratio of one run does.''')
    args.add_argument('backbone', metavar='NAME', help='e.g. swin_tiny')
    args.add_argument('--against', metavar='NAME', help='e.g. timm/swin_tiny_patch4_window7_224')
    args.add_argument('--against-options', nargs='+', action=Options, default={},
                      metavar='KEY=VALUE', help='settings of the other one')
    args.add_argument('--options', nargs='+', action=Options, default={}, metavar='KEY=VALUE',
                      help='settings of the first one')
    args.add_argument('--size', type=int, nargs=2, default=(512, 512), metavar=('H', 'W'))
    args.add_argument('--batch', type=int, default=1)
    args.add_argument('--repeats', type=int, default=10)
    args.add_argument('--threads', type=int, default=1)
    args = args.parse_args()

    import torch
    torch.set_num_threads(args.threads)
    import backbones
    from suite.latency import compare
    names = [args.backbone] + [args.against] * bool(args.against)
    settings = args.options, args.against_options
    nets = [backbones.create(name, **options) for name, options in zip(names, settings)]
    shape = args.batch, 3, *args.size
    print(f'{"x".join(map(str, shape))}, {args.threads} thread(s), float32, median (p10-p90) of '
          f'{args.repeats}')
    for name, found in compare(nets, shape, args.repeats).items():
        for net, one in zip(names, found):
            timing = one.timing
            print(f'{name:<18}{net:<32}{timing.median:8.3f} s ({timing.p10:.3f}-{timing.p90:.3f})'
                  f'  {one.memory / 2 ** 20:8.0f} MiB')
        if args.against:
            ours, other = found
            print(f'{name:<18}{"ratio":<32}{other.timing.median / ours.timing.median:8.2f}'
                  f'{other.memory / ours.memory:30.2f} in memory')


if __name__ == '__main__':
    sys.exit(guard(main))
