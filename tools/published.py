"""Print published results, with their sources, as Markdown; nothing here was measured by us."""
import sys

import _checkout  # noqa: F401
from suite.cli import guard, parser


def main():
    args = parser(__doc__)
    args.add_argument('systems', nargs='*', metavar='SYSTEM',
                      help='all results of these, e.g. swin (default: a row per system, of the '
                      'arch in its configs)')
    args = args.parse_args()

    from suite.config import configured_archs
    from suite.published import table
    print('\n\n'.join(table.everything(system) for system in args.systems)
          or table.summary(configured_archs()))


if __name__ == '__main__':
    sys.exit(guard(main))
