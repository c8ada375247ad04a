"""Make the small synthetic data sets that --mini runs train on."""
from __future__ import annotations

import argparse
import sys

import _checkout
from suite.cli import guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default=str(_checkout.ROOT / 'data/mini'), metavar='DIR',
                        help='folder that gets one folder per kind (default: data/mini)')
    parser.add_argument('--kind', default='all',
                        choices=('coco', 'ade', 'kumar', 'consep', 'cpm17', 'all'))
    parser.add_argument('--seed', type=int, default=0, help='other seeds draw other pictures')
    parser.add_argument('--images', type=int, metavar='N',
                        help='training pictures, to which a quarter comes for validation '
                             '(default: 200 for coco, 80 for ade, 32 of nuclei)')
    parser.add_argument('--preview', metavar='FILE.png',
                        help='also draw a contact sheet of pictures with their annotations')
    args = parser.parse_args()

    from suite.mini import KINDS, make_mini
    kinds = tuple(KINDS) if args.kind == 'all' else (args.kind,)
    make_mini(args.out, kinds, args.seed, args.images)
    if args.preview:
        from suite.preview import preview
        preview(args.out, kinds, args.preview)


if __name__ == '__main__':
    sys.exit(guard(main))
