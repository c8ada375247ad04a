"""Share of a trained model's nuclei that it finds again when it looks through windows."""
import sys

import _checkout  # noqa: F401
from suite.cli import add_config_arguments, guard, load_config, parser


def main():
    args = parser(__doc__, '''example:
  tools/bench_windows.py configs/dilateformer/upernet_kumar.py --mini iter_200.pth
  tools/bench_windows.py work_dirs/RUN/upernet_kumar.py iter_200.pth --overlap 64 96 128''')
    add_config_arguments(args)
    args.add_argument('checkpoint', help='file of a training run')
    args.add_argument('--size', type=int, default=1536, metavar='PX',
                      help='side of the synthetic image (default: 1536)')
    args.add_argument('--overlap', type=int, nargs='+', default=(), metavar='PX',
                      help="least context around a window's core (default: the config's)")
    args = args.parse_args()

    from suite.nuclei_windows import compare_windows
    for one in compare_windows(load_config(args), args.checkpoint, args.size, args.overlap):
        print(f'windows of {one.window} px, {one.overlap} px of context: {one.again:.2%} of '
              f'{one.whole} nuclei again at IoU 0.9; {one.pieces} found', flush=True)


if __name__ == '__main__':
    sys.exit(guard(main))
