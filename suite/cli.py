"""What every command line shares: one line for a user's mistake, none of our insides."""
from __future__ import annotations

import argparse
import ast
import errno
import os
import re
import sys
from collections.abc import Callable


def parser(purpose: str, examples: str = '') -> argparse.ArgumentParser:
    """A command line with its purpose above and its examples below."""
    return argparse.ArgumentParser(description=purpose, epilog=examples,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def add_config_arguments(args: argparse.ArgumentParser) -> None:
    """The arguments by which every tool names a config and changes it."""
    args.add_argument('config', help='config file, e.g. configs/swin/maskrcnn_coco.py')
    args.add_argument('--backbone', metavar='NAME',
                      help='another backbone, e.g. swin_tiny or timm/convnext_tiny')
    args.add_argument('--mini', action='store_true',
                      help='a trial of minutes on small synthetic data')
    args.add_argument('--data-root', metavar='DIR',
                      help='folder that holds coco/, ade/, kumar/, ... (default: data/)')
    args.add_argument('--cfg-options', nargs='+', action=Options, metavar='KEY=VALUE',
                      help='override settings, e.g. model.backbone.arch=small')


def load_config(args: argparse.Namespace):
    """The config that the arguments of ``add_config_arguments`` name, filled in."""
    from .config import load
    return load(args.config, backbone=args.backbone, options=args.cfg_options,
                data_root=args.data_root, mini=args.mini)


def add_run_arguments(args: argparse.ArgumentParser) -> None:
    """Where a run's results go and who started its processes."""
    args.add_argument('--work-dir', metavar='DIR', help='folder for results')
    args.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none',
                      help='torchrun is noticed by itself')


class Options(argparse.Action):
    """KEY=VALUE ... as a dict; values are Python literals, else words, else lists of them."""

    def __call__(self, args, namespace, values, option_string=None):
        options = dict(getattr(namespace, self.dest) or {})
        for text in values:
            key, equals, value = text.partition('=')
            if not equals:
                args.error(f'{option_string}: {text!r} is not KEY=VALUE')
            options[key] = self.value(value)
        setattr(namespace, self.dest, options)

    @classmethod
    def value(cls, text: str):
        if text.lower() in ('true', 'false', 'none'):
            text = text.capitalize()
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError):
            return [cls.value(part) for part in text.split(',')] if ',' in text else text


def guard(main: Callable[[], int | None]) -> int:
    """Run ``main`` and turn what a user can cause into one line and an exit status.

    Returns:
        main's own status, 2 after a UserError or DataError, 130 after Ctrl-C.
    """
    try:
        return main() or 0
    except KeyboardInterrupt as interrupt:
        print(f'\ninterrupted: {interrupt}' if str(interrupt) else '\ninterrupted',
              file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if error.name.partition('.')[0] in ('backbones', 'suite', 'histology'):
            raise
        print(f'error: {error.name} is not installed in {sys.executable}; run the command through '
              'bash tools/env.sh, or see python tools/doctor.py', file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ValueError as error:
        from backbones.errors import UserError
        from histology.errors import DataError
        if not isinstance(error, UserError | DataError):
            raise
        print(f'error: {reason(error)}', file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(f'error: a file could not be written ({error.strerror}); make room and repeat the '
              'command (a training run goes on with --resume)', file=sys.stderr)
        return 2


def reason(error: BaseException) -> str:
    """The line of an error that says what is wrong: the last, since a data-loading worker
    puts its traceback before it."""
    lines = str(error).strip().splitlines() or ['']
    return re.split('(?:User|Data)Error: ', lines[-1])[-1]
