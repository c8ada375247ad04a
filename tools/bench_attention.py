"""DilateFormer's local attention against the textbook unfold form: ratios of one run."""
import sys

import _checkout  # noqa: F401
from suite.cli import guard, parser


def main():
    args = parser(__doc__)
    args.add_argument('--shape', type=int, nargs=4, default=(1, 72, 200, 336),
                      metavar=('B', 'C', 'H', 'W'), help='default: stage 1 at 800 x 1333')
    args.add_argument('--heads', type=int, default=3)
    args.add_argument('--repeats', type=int, default=10)
    args.add_argument('--threads', type=int, default=1)
    args = args.parse_args()

    import torch
    torch.set_num_threads(args.threads)
    from suite.attention import compare
    found = compare(tuple(args.shape), args.heads, args.repeats)
    print(f'{"x".join(map(str, args.shape))}, {args.heads} heads, {args.threads} thread(s), median '
          f'of {args.repeats}\n'
          f'largest difference, outputs and gradients: {found["difference"]:.1e}\n'
          f'forward:             {found["forward"]:.1f} times faster, '
          f'{found["memory_forward"]:.2f} of the peak memory\n'
          f'forward + backward:  {found["both"]:.1f} times faster, '
          f'{found["memory_both"]:.2f} of the peak memory')


if __name__ == '__main__':
    sys.exit(guard(main))
