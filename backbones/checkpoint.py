"""Reading other people's checkpoints: safely, by their names, with a report."""
from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import UserError

_CONTAINERS = ('state_dict', 'model', 'module', 'model_state', 'model_ema', 'state_dict_ema')
_PREFIXES = ('module.', 'backbone.')
_ENOUGH = 0.95

log = logging.getLogger('backbones')


class _Called(type):
    def __call__(cls, *args, **kwargs):
        return object.__new__(cls)


class _Foreign(metaclass=_Called):
    """Stands for any object in a checkpoint that is not a tensor or plain data, so that
    ``weights_only`` loading need not run, or even know, the code that made it.

    A pickle either calls a class, and gets one of these, or makes a bare instance by
    ``__new__`` and fills it: that one may be a dict (yacs and mmengine configs are), and
    the unpickler fills no other class of dicts than its own.
    """

    def __new__(cls, *args, **kwargs):
        return OrderedDict()

    def __setstate__(self, state):
        pass


def read_checkpoint(path: str | Path) -> dict:
    """The contents of a checkpoint file, on the CPU; nothing in it is executed.

    Raises:
        UserError: no such file, or not a readable checkpoint.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f'checkpoint not found: {path}')
    try:
        if path.suffix == '.safetensors':
            from safetensors.torch import load_file
            return load_file(path)
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except ValueError:  # the format before torch 1.6 cannot be listed
            names = ['argparse.Namespace']
        with torch.serialization.safe_globals([(_Foreign, name) for name in names]):
            content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        reason = str(error).rpartition('WeightsUnpickler error:')[2].strip().splitlines()
        reason = reason or [type(error).__name__]
        raise UserError(f'checkpoint {path} is corrupted or not a PyTorch checkpoint '
                        f'({reason[0][:120]}); fetch or save it again') from error
    if not isinstance(content, dict):
        raise UserError(f'checkpoint {path} holds a {type(content).__name__}, not weights')
    return content


def find_weights(content: dict, key: str | None = None) -> tuple[dict[str, Tensor], str]:
    """The state dict inside a checkpoint's contents, and the name it stood under.

    Args:
        key: which entry to take; default the first of state_dict, model, module,
            model_state, model_ema, state_dict_ema, or the contents themselves.
    """
    if key is not None and key not in content:
        raise UserError(f'the checkpoint has no entry {key!r}; it has '
                        f'{", ".join(map(str, list(content)[:8]))}')
    key = key or next((name for name in _CONTAINERS if isinstance(content.get(name), dict)), '')
    state = content[key] if key else content
    state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for prefix in _PREFIXES:
        inside = {name.removeprefix(prefix): value for name, value in state.items()
                  if name.startswith(prefix)}
        state = inside or state
    if not state:
        raise UserError(f'the checkpoint holds no tensors{f" under {key!r}" * bool(key)}; save '
                        'a state dict, not a whole model')
    return state, key


def load_report(net: nn.Module, state: dict[str, Tensor], source: str,
                whole: bool = False) -> str:
    """Load what fits by name and shape, and say how much that was.

    Parameters that we ``added`` to the official network do not count in the share.

    Args:
        whole: nothing may be missing, not even the last layer of a head.

    Returns:
        One line: tensors and share of the parameters that were loaded.

    Raises:
        UserError: under 95 % of the network's parameters fit; nothing is loaded then.
    """
    own = net.state_dict()
    fits = {name: value for name, value in state.items()
            if name in own and own[name].shape == value.shape}
    added = getattr(net, 'added', ())
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()
             if not name.startswith(added)}
    share = sum(sizes.get(name, 0) for name in fits) / max(sum(sizes.values()), 1)
    missing = [name for name in own if name not in fits]
    if share < _ENOUGH or (whole and missing):
        extra = [name for name in state if name not in fits]
        raise UserError(
            f'{source} does not fit {type(net).__name__}: {share:.1%} of its parameters found; '
            f'missing {", ".join(missing[:3])}; unexpected {", ".join(extra[:3]) or "none"}'
            + '; it is of another network or of other classes' * whole)
    net.load_state_dict(fits, strict=False)
    # Where a module of modules was added, its name stands for all that it holds.
    nested = tuple(f'{name}.' for name, module in net.named_modules()
                   if f'{name}.' in added and any(module.children()))
    modules = [f'{name}*' for name in nested if any(n.startswith(name) for n in missing)]
    others = [name for name in missing if not name.startswith(nested)]
    rest = ', '.join(modules + others[:4] + ['...'] * (len(others) > 4))
    return (f'loaded {len(fits)} of {len(own)} tensors, {share:.1%} of the parameters, from '
            f'{source}' + f'; not in it: {rest}' * bool(missing))


def load_pretrained(net: nn.Module, checkpoint: str | Path, key: str | None = None) -> str:
    """Load an official or our own checkpoint into a backbone; returns and logs the report.

    Args:
        net: a backbone; its ``convert`` translates names and resizes tables.
        checkpoint: path of a ``.pth`` or ``.safetensors`` file.
        key: entry that holds the weights, see ``find_weights``.
    """
    state, entry = find_weights(read_checkpoint(checkpoint), key)
    source = f'{checkpoint} [{entry}]' if entry else str(checkpoint)
    report = load_report(net, net.convert(state, net), source)
    log.info(report)
    return report
