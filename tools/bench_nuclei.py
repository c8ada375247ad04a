"""Nuclei metrics against a loop over pairs, and what metrics, targets and post-processing cost."""
import sys

import _checkout  # noqa: F401
from suite.cli import guard, parser


def main():
    args = parser(__doc__)
    args.add_argument('--repeats', type=int, default=5)
    args = args.parse_args()

    import cv2
    cv2.setNumThreads(1)
    from suite.nuclei_speed import compare_scores, postprocess_costs, score_costs, target_costs
    ours, loop, difference = compare_scores(600, 1000, args.repeats)
    print(f'one thread, median of {args.repeats}; memory is the peak above what was held before\n'
          f'metrics of 600 nuclei on 1000x1000: {1e3 * ours.median:.1f} ms, pair by pair '
          f'{loop.median:.2f} s: {loop.median / ours.median:.0f} times faster, '
          f'largest difference {difference:.0e}', flush=True)

    def show(what, count, side, cost, more=''):
        print(f'{what:<20}{count:>6} nuclei on {side}x{side}  {1e3 * cost.timing.median:8.1f} ms'
              f'{cost.memory / 2 ** 20:8.0f} MiB  {more}', flush=True)

    counts = 1250, 2500, 5000, 10000
    for count, cost in zip(counts, score_costs(counts, 4000, args.repeats)):
        show('metrics', count, 4000, cost, f'{1e6 * cost.timing.median / count:.0f} us per nucleus')
    for count, side in ((600, 1000), (10000, 4000)):
        for name, (cost, quality) in postprocess_costs(count, side, args.repeats).items():
            show(name, count, side, cost, f'PQ {quality:.4f} of perfect maps')
    for name, cost in target_costs(36, 256, args.repeats).items():
        show(name, 36, 256, cost)


if __name__ == '__main__':
    sys.exit(guard(main))
