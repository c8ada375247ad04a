"""The arguments of a sweep, from a command line or from a YAML file that mirrors it."""
from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from backbones.errors import UserError, closest


def read(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line whose one backbone may be a YAML file.

    Its keys are the long arguments, with ``_`` for ``-``, and ``backbones``; its values stand
    before the command line's own, which win.

    Raises:
        UserError: the file is not there, or says something that the arguments do not allow.
    """
    args = parser.parse_args(words)
    files = [word for word in args.backbones if word.endswith(('.yaml', '.yml'))]
    if not files:
        return args
    if len(args.backbones) > 1:
        raise UserError(f'{files[0]} stands beside other names; a sweep comes from one YAML file '
                        'or from names')
    rest = list(words)
    rest.remove(files[0])
    return _from_file(parser, files[0], rest)


def _from_file(parser: argparse.ArgumentParser, path: str, rest: list[str]) -> argparse.Namespace:
    def refuse(message: str):
        raise UserError(f'{path}: {message}')
    content = _load(path)
    actions = {action.dest: action for action in parser._actions if action.dest != 'help'}
    for key in content:
        if key not in actions:
            refuse(f'no setting {key!r}{closest(key, actions)}')
    if not content.get('backbones'):
        refuse('backbones are missing; name some, or all')
    given = [word for key, value in content.items()
             for word in _words(actions[key], value, refuse)]
    usual, parser.error = parser.error, refuse
    try:
        parser.parse_args(given)
    finally:
        parser.error = usual
    return parser.parse_args([*given, *rest])


def _load(path: str) -> dict:
    import yaml
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror})') from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f'{path} is no YAML: {" ".join(str(error).split())}') from error
    if not isinstance(content, dict):
        raise UserError(f'{path} holds no settings; write KEY: VALUE, such as backbones: all')
    return content


def _words(action: argparse.Action, value, refuse) -> Iterator[str]:
    """The words of a command line that say what a key and its value say."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            refuse(f'{action.dest} is true or false, not {value!r}')
        yield from action.option_strings[:1] * value
        return
    if isinstance(value, dict):
        value = [f'{key}={part!r}' for key, part in value.items()]
    values = value if isinstance(value, list) else [value]
    if action.nargs is None and isinstance(value, list):
        refuse(f'{action.dest} is one value, not {value!r}')
    if any(part is None or isinstance(part, dict | list | bool) for part in values):
        refuse(f'{action.dest} is no such value: {value!r}')
    yield from (*action.option_strings[:1], *map(str, values))
