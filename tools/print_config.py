"""Print a config as a run would use it: everything filled in."""
import sys

import _checkout  # noqa: F401
from suite.cli import add_config_arguments, guard, parser


def main():
    args = parser(__doc__)
    add_config_arguments(args)
    args = args.parse_args()

    from suite import config
    print(config.load(args.config, backbone=args.backbone, options=args.cfg_options,
                      data_root=args.data_root, mini=args.mini).pretty_text)


if __name__ == '__main__':
    sys.exit(guard(main))
