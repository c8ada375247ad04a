"""Local attention by views against the textbook unfold form: ratios of one run."""
import sys

import _checkout  # noqa: F401
from suite.cli import guard, parser


def main():
    args = parser(__doc__)
    args.add_argument('systems', nargs='*', metavar='SYSTEM',
                      help='e.g. dilateformer (default: all that have such attention)')
    args.add_argument('--size', type=int, nargs=2, default=(800, 1344), metavar=('H', 'W'),
                      help='of the image (default: 800 1344)')
    args.add_argument('--repeats', type=int, default=10)
    args.add_argument('--threads', type=int, default=1)
    args = args.parse_args()

    import torch
    torch.set_num_threads(args.threads)
    from backbones.errors import UserError, closest
    from suite.attention import SYSTEMS, case, compare
    for system in args.systems or SYSTEMS:
        if system not in SYSTEMS:
            raise UserError(f'no textbook form of {system!r}{closest(system, SYSTEMS)}')
        forms = case(system, *args.size)
        found = compare(forms, args.repeats)
        print(f'{system}: {forms.what}, {args.threads} thread(s), median of {args.repeats}\n'
              f'  largest difference, outputs and gradients: {found.difference:.1e}\n'
              f'  forward:             {found.forward:.1f} times faster, '
              f'{found.memory_forward:.2f} of the peak memory\n'
              f'  forward + backward:  {found.both:.1f} times faster, '
              f'{found.memory_both:.2f} of the peak memory', flush=True)


if __name__ == '__main__':
    sys.exit(guard(main))
