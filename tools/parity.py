"""Compare backbones with reference figures that the official implementations gave."""
from __future__ import annotations

import argparse
import sys

import _checkout  # noqa: F401
from suite.cli import guard


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='Prints one line per case; the exit status is 0 only if '
        'all of them agree. Stages are counted from 1.')
    parser.add_argument('cases', nargs='+', metavar='CASE.json',
                        help='reference figures of one network at one input size')
    parser.add_argument('--tolerance', type=float, metavar='X',
                        help='largest difference of an output, in its standard deviations '
                        '(default 1e-4, or what the figures of a system allow)')
    args = parser.parse_args()

    from suite.parity import check_all
    return 0 if check_all(args.cases, args.tolerance) else 1


if __name__ == '__main__':
    sys.exit(guard(main))
