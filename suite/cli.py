"""What every command line shares: one line for a user's mistake, none of our insides."""
from __future__ import annotations

import argparse
import ast
import errno
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


def parser(purpose: str, examples: str = '') -> argparse.ArgumentParser:
    """A command line with its purpose above and its examples below."""
    return argparse.ArgumentParser(description=purpose, epilog=examples, formatter_class=_Screen)


class _Screen(argparse.RawDescriptionHelpFormatter):
    """Help that fits on a screen: its first line leaves out the options, which stand below."""

    def add_usage(self, usage, actions, groups, prefix=None):
        needed = ' '.join((action.metavar or action.dest) + ' ...' * (action.nargs in ('+', '*'))
                          for action in actions if not action.option_strings)
        super().add_usage(f'%(prog)s {needed} [options]', actions, groups, prefix)


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


def add_training_arguments(args: argparse.ArgumentParser) -> None:
    """How runs depart from what their configs say, the same for one and for many."""
    args.add_argument('--amp', action='store_true',
                      help='mixed precision (bfloat16 where supported)')
    args.add_argument('--layer-decay', type=float, metavar='RATE',
                      help='factor of the rate from layer to layer, e.g. 0.8')
    args.add_argument('--ema', type=float, nargs='?', const=0.0002, metavar='MOMENTUM',
                      help='measure and save averaged weights (0.0002)')
    args.add_argument('--accumulate', type=int, default=1, metavar='N',
                      help='batches per optimizer step')
    args.add_argument('--compile', action='store_true', help='torch.compile the backbone')
    args.add_argument('--fsdp', action='store_true',
                      help='shard the model over the processes of torchrun')
    args.add_argument('--budget', metavar='AMOUNT',
                      help='in place of the schedule: 20kimages, 10minutes')
    args.add_argument('--subset', type=float, metavar='SHARE',
                      help='train on a share of the images, alike for all')


def training_flags(args: argparse.Namespace) -> dict:
    """Those of ``add_training_arguments`` that ``flags.apply`` takes."""
    names = 'amp', 'layer_decay', 'ema', 'accumulate', 'compile', 'fsdp'
    return {name: getattr(args, name) for name in names}


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


def need_writable(path: str | None, argument: str) -> None:
    """Raise a UserError, before an hour of work and not after it, where the file that an
    argument names could not be written."""
    if path is None:
        return
    file = Path(path).expanduser()
    try:
        if file.is_dir():
            raise IsADirectoryError(0, 'it is a folder')
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        from backbones.errors import UserError
        raise UserError(f'{argument}: {path} cannot be written ({error.strerror}); name a file '
                        'in a folder that exists and is yours') from error


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
