"""COCO evaluation by faster-coco-eval beside pycocotools: twelve numbers, time and ratio."""
import sys

import _checkout  # noqa: F401
from suite.cli import guard, parser


def main():
    args = parser(__doc__)
    args.add_argument('--images', type=int, default=1000)
    args.add_argument('--detections', type=int, default=60000, help='over all images')
    args.add_argument('--repeats', type=int, default=3)
    args = args.parse_args()

    import numpy as np

    from suite.coco_speed import CLASSES, KINDS, PHASES, compare, toy_results
    truth, found = toy_results(args.images, args.detections)
    print(f'{args.images} images, {len(truth["annotations"])} objects of {CLASSES} classes, '
          f'{args.detections} detections; seconds, median of {args.repeats} in turns\n'
          f'{"":<24}{"".join(f"{phase:>12}" for phase in (*PHASES, "all"))}', flush=True)
    for kind in KINDS:
        results = compare(truth, found[kind], kind, args.repeats)
        for name, result in results.items():
            shown = *np.median(result.seconds, 0), result.total
            print(f'{kind:<6}{name:<18}{"".join(f"{seconds:12.3f}" for seconds in shown)}')
        oracle, ours = results.values()
        print(f'{kind:<6}AP {ours.stats[0]:.4f}, largest difference of the twelve numbers '
              f'{np.abs(oracle.stats - ours.stats).max():.0e}, '
              f'{oracle.total / ours.total:.2f} times faster', flush=True)


if __name__ == '__main__':
    sys.exit(guard(main))
