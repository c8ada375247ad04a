"""Check the installation: what is there, what is wrong with it, what cures it."""
from __future__ import annotations

import argparse
import sys

import _checkout  # noqa: F401
from suite.cli import guard


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__,
        epilog='Exit status: 0 and a last line OK, or 1 and a line FAULT ...; cure: ... each.'
    ).parse_args()
    from suite.doctor import report
    return report()


if __name__ == '__main__':
    sys.exit(guard(main))
