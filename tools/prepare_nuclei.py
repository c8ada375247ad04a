"""Prepare a data set of nuclei: check it, and write images, instance maps, tiles and COCO json."""
from __future__ import annotations

import argparse
import sys

import _checkout
from suite.cli import guard


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog='Nothing is downloaded: without --source, the command says '
        'where the data comes from.')
    parser.add_argument('dataset', choices=('kumar', 'consep', 'cpm17'))
    parser.add_argument('--source', metavar='DIR', help='folder with the data as distributed')
    parser.add_argument('--out', default=str(_checkout.ROOT / 'data'), metavar='DIR',
                        help='folder that gets the folder kumar, consep or cpm17 (default: data)')
    parser.add_argument('--skip-bad', action='store_true',
                        help='leave out images that cannot be used')
    args = parser.parse_args()

    from histology.catalog import explain
    if args.source is None:
        print(explain(args.dataset))
        return
    from histology.prepare import prepare
    record = prepare(args.dataset, args.source, args.out, args.skip_bad)
    for line in record['deviations']:
        print(f'deviation: {line}')
    for line in record['skipped']:
        print(f'left out: {line}')
    for split, found in record['splits'].items():
        print(f'{args.dataset} {split}: {found["images"]} images, {found["nuclei"]} nuclei')
    print(f'types: {", ".join(record["types"] or ["none"])}')


if __name__ == '__main__':
    sys.exit(guard(main))
