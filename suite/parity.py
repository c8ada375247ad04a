"""Does a backbone compute what the official code computes?

A case is a json file that somebody wrote by running the official network: its parameter
names and shapes, the input's size, and of every output the shape, mean, standard deviation
and some values. Weights and input follow by rule from names, shapes and a seed, so a case
of 20 kB stands for a checkpoint.
"""
from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import backbones
from backbones import Backbone, UserError

# Largest differences in standard deviations of an output: tighter where the figures have
# less noise, wider where a stage's float32 noise, not a mistake, reaches that far.
TOLERANCE = 1e-4
TOLERANCES = {
    r'(convnext|hornet) .*': 1e-5,
    r'moganet .*': 2e-5,
    r'edgenext .*': 5e-5,
    r'nextvit .*': (1e-4, 1e-4, 1e-3, 1e-3),
    r'spach ms_\w+_s(_plus)?': (1e-4, 1e-4, 2e-4, 1e-4),
    r'visformer swin_tiny_v2': (1e-4, 1e-4, 1e-4, 3e-3),
}
# Networks that GrafT's cases call its hosts.
HOSTS = dict(host_swin_t='Swin', host_deit_t='DeiT', host_mobilevit_xxs='MobileViT')


class Disagreement(Exception):
    """One line: in what a network is not the official one."""


@dataclass(frozen=True)
class Case:
    """Reference figures of one network at one input size."""
    model: str
    variant: str
    input: dict[str, int]
    shapes: dict[str, list[int]]
    outputs: list[dict]

    def __str__(self) -> str:
        return f'{self.model} {self.variant} {self.input["height"]}x{self.input["width"]}'


def fill(name: str, shape: Iterable[int]) -> Tensor:
    """The weights that a name and a shape stand for, float32.

    Norm gains lie around 1, matrices and kernels keep the variance of their input, the
    rest is small. Bit by bit what the makers of the cases used.
    """
    shape = tuple(shape)
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    noise = random.standard_normal(shape).astype(np.float32)
    leaf = name.rpartition('.')[2]
    if leaf == 'running_var':
        noise = 1 + 0.25 * np.tanh(noise)
    elif leaf == 'running_mean':
        noise = 0.1 * noise
    elif leaf == 'weight' and len(shape) == 1:
        noise = 1 + 0.1 * noise
    elif len(shape) < 2:
        noise = 0.1 * noise
    elif leaf in ('weight', 'kernel'):
        noise = noise / np.sqrt(max(np.prod(shape[1:]), 1))
    else:
        noise = 0.2 * noise
    return torch.from_numpy(np.asarray(noise, np.float32))


def image(height: int, width: int, batch: int = 1, seed: int = 7) -> Tensor:
    """The input that a size and a seed stand for: per channel four plane waves and some
    noise, so that a wrong border or interpolation shows. batch x 3 x H x W, float32."""
    random = np.random.RandomState(seed)
    waves = random.uniform((0.5, 0.5, 0), (6, 6, 2 * np.pi), (batch, 3, 4, 3))
    rows, columns, phase = np.moveaxis(waves, -1, 0)[..., None, None]
    y, x = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    out = (np.sin(2 * np.pi * (rows * y + columns * x) + phase) * 0.6).sum(2)
    out += 0.3 * random.standard_normal(out.shape)
    return torch.from_numpy(out.astype(np.float32))


def read_case(path: str | Path) -> Case:
    """Read a case.

    Raises:
        UserError: no such file, not json, or no case.
    """
    try:
        content = json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from error
    except ValueError as error:
        raise UserError(f'{path}: not a json file ({error})') from error
    needed = ('model', 'variant', 'input', 'state_dict', 'outputs')
    lacking = [key for key in needed if not isinstance(content, dict) or key not in content]
    if lacking:
        raise UserError(f'{path}: not a parity case, it has no {", ".join(lacking)}')
    try:
        size = {key: content['input'][key] for key in ('height', 'width')}
        options = {key: content['input'][key] for key in ('batch', 'seed')
                   if key in content['input']}
        outputs = [{key: output[key] for key in ('shape', 'mean', 'std', 'index', 'value')}
                   for output in content['outputs']]
        return Case(content['model'], content['variant'], {**size, **options},
                    dict(content['state_dict']), outputs)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f'{path}: not a parity case ({type(error).__name__}: {error})') from error


def system_of(case: Case) -> type[Backbone] | None:
    """The registered system that a case is about; None while there is none."""
    def plain(name: str) -> str:
        return re.sub('[^a-z0-9]', '', name.lower())

    known = {plain(name): cls for name, cls in backbones.systems().items()}
    name = plain(HOSTS.get(case.variant, case.model))
    return known.get(name) or known.get(name.removesuffix('vit'))


def tolerances(case: Case) -> list[float]:
    """What each output of a case may differ by, in its standard deviations."""
    name = f'{case.model} {case.variant}'
    known = (value for pattern, value in TOLERANCES.items() if re.fullmatch(pattern, name))
    allowed = next(known, TOLERANCE)
    count = len(case.outputs)
    return list(allowed) if isinstance(allowed, tuple) else [allowed] * count


def load(net: Backbone, shapes: dict[str, list[int]]) -> None:
    """Give a network the weights of a case, all of them, and leave none of its own.

    Raises:
        Disagreement: a tensor of the case is not used, or one of ours is not given or has
            another shape.
    """
    official = {name: fill(name, shape).requires_grad_() for name, shape in shapes.items()}
    given = net.convert(dict(official), net)
    # Conversion may rename, permute, join or resize. What no result depends on, it dropped.
    total = sum((tensor.sum() for tensor in given.values()), torch.zeros((), requires_grad=True))
    grads = torch.autograd.grad(total, list(official.values()), allow_unused=True)
    own = {name: tensor for name, tensor in net.state_dict().items()
           if tensor.is_floating_point()}
    _none('official tensor without use', (n for n, grad in zip(official, grads) if grad is None))
    _none('official tensor without a place', (n for n in given if n not in own))
    _none('not given by the case', (n for n in own if n not in given))
    _none('of another shape', (f'{n} ({_size(given[n].shape)}, ours {_size(own[n].shape)})'
                               for n in own if given[n].shape != own[n].shape))
    net.load_state_dict(given, strict=False)


def _none(what: str, names: Iterable[str]) -> None:
    if names := list(names):
        more = f' and {len(names) - 1} more' if len(names) > 1 else ''
        raise Disagreement(f'{what}: {names[0]}{more}')


def _size(shape: Iterable[int]) -> str:
    return 'x'.join(map(str, shape))


def error_of(output: Tensor, reference: dict) -> float:
    """Largest difference of the sampled values, the mean and the standard deviation, in
    standard deviations of the reference.

    Raises:
        Disagreement: another shape.
    """
    if list(output.shape) != reference['shape']:
        raise Disagreement(f'shape {_size(output.shape)}, not {_size(reference["shape"])}')
    output = output.double().flatten()
    ours = torch.cat([output[reference['index']],
                      torch.stack([output.mean(), output.std(correction=0)])])
    theirs = ours.new_tensor([*reference['value'], reference['mean'], reference['std']])
    return ((ours - theirs).abs().max() / reference['std']).item()


def compare(outputs: Iterable[Tensor], references: list[dict], allowed: list[float]) -> float:
    """The largest error over all outputs.

    Args:
        allowed: tolerance of each output, in standard deviations.

    Raises:
        Disagreement: names the first stage, counted from 1, that is beyond the tolerance.
    """
    outputs = list(outputs)
    errors = []
    for stage, (output, reference, tolerance) in enumerate(zip(outputs, references, allowed), 1):
        try:
            errors.append(error_of(output, reference))
        except Disagreement as difference:
            raise Disagreement(f'stage {stage} first: {difference}') from None
        if not errors[-1] <= tolerance:  # NaN is beyond it, too
            raise Disagreement(f'stage {stage} first: {errors[-1]:.2g} '
                               f'(tolerance {tolerance:g})')
    if len(outputs) != len(references):
        raise Disagreement(f'{len(outputs)} outputs, not {len(references)}')
    return max(errors)


def check(path: str | Path, tolerance: float | None = None) -> tuple[bool, str]:
    """Whether the network of a case agrees with it, and one line that says so.

    Args:
        tolerance: of all outputs; default what the case allows.
    """
    try:
        case = read_case(path)
    except UserError as error:
        return False, f'no case  {error}'
    cls = system_of(case)
    if cls is None:
        return False, f'not built yet  {case}'
    try:
        size = case.input['height'], case.input['width']
        net = cls(**cls.reference(case.variant, size)).eval()
    except UserError as error:
        return False, f'not built yet  {case}  {error}'
    try:
        load(net, case.shapes)
        with torch.no_grad():
            allowed = tolerances(case) if tolerance is None else [tolerance] * len(case.outputs)
            error = compare(net(image(**case.input)), case.outputs, allowed)
    except Disagreement as difference:
        return False, f'DIFFERS  {case}  {difference}'
    except Exception as error:  # one broken network must not hide the cases after it
        reason = str(error).strip().splitlines() or ['no message']
        return False, f'FAILS  {case}  {type(error).__name__}: {reason[0]}'
    limit = '/'.join(f'{value:g}' for value in dict.fromkeys(allowed))
    return True, f'ok  {case}  {error:.1e} (tolerance {limit})'


def check_all(paths: Iterable[str | Path], tolerance: float | None = None) -> bool:
    """Print one line per case as soon as it is known, then the count; True if all agree."""
    results = []
    for path in paths:
        agrees, line = check(path, tolerance)
        results.append(agrees)
        print(line, flush=True)
    print(f'{sum(results)} of {len(results)} cases agree')
    return all(results)
