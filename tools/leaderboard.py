"""Rank measured backbones: Markdown, CSV and one HTML page from the records of runs."""
import sys

import _checkout  # noqa: F401
from suite.cli import guard, parser


def main():
    args = parser(__doc__, 'Runs are ranked only against runs of the same protocol, schedule, '
                  'pre-training, kind of\ndata and evaluation. Example:\n'
                  '  python tools/leaderboard.py work_dirs/sweep --out leaderboard')
    args.add_argument('folders', nargs='+', metavar='FOLDER',
                      help='every record.json below it is read')
    args.add_argument('--out', metavar='DIR',
                      help='folder for leaderboard.{html,md,csv} (default: the first FOLDER)')
    args = args.parse_args()

    from suite.leaderboard.write import write
    for line in write(args.folders, args.out):
        print(line)


if __name__ == '__main__':
    sys.exit(guard(main))
