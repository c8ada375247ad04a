"""Print a config as a run would use it: everything filled in."""
import sys

import _checkout  # noqa: F401
from suite.cli import add_config_arguments, guard, load_config, parser


def main():
    args = parser(__doc__)
    add_config_arguments(args)
    args = args.parse_args()

    print(load_config(args).pretty_text)


if __name__ == '__main__':
    sys.exit(guard(main))
