"""Whether the installation is sound, and what cures it where it is not.

Facts are gathered first, imports in a process of their own, because a broken package may
take its process down. Then ``faults`` judges the facts; it touches nothing. Only the
standard library is needed here.
"""
from __future__ import annotations

import configparser
import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = 'tools/constraints.txt'

# What is imported, in this order: the distribution that brings it, and the modules without
# which it cannot work, so that a failure is reported where it starts.
MODULES = {
    'numpy': ('numpy', ()),
    'torch': ('torch', ()),
    'torchvision': ('torchvision', ('numpy', 'torch')),
    'timm': ('timm', ('torch', 'torchvision')),
    'cv2': ('opencv-python-headless', ('numpy',)),
    'pycocotools.mask': ('pycocotools', ('numpy',)),
    'faster_coco_eval': ('faster-coco-eval', ('numpy',)),
    'mmengine': ('onedl-mmengine', ('numpy', 'torch', 'cv2')),
    'mmcv': ('onedl-mmcv', ('mmengine', 'cv2')),
    'mmcv._ext': ('onedl-mmcv', ('mmcv',)),
    'mmdet': ('onedl-mmdetection', ('mmcv', 'torchvision', 'pycocotools.mask')),
    'mmseg': ('onedl-mmsegmentation', ('mmcv',)),
}
# Distributions that write the same folders as ours.
UPSTREAM = {
    'mmengine': 'onedl-mmengine', 'mmengine-lite': 'onedl-mmengine', 'mmcv': 'onedl-mmcv',
    'mmcv-full': 'onedl-mmcv', 'mmcv-lite': 'onedl-mmcv', 'mmdet': 'onedl-mmdetection',
    'mmsegmentation': 'onedl-mmsegmentation',
}
_NUMPY = re.compile(r'numpy\.dtype size changed|compiled (using|against) (NumPy|API)|'
                    r'_ARRAY_API|numpy\.core\.multiarray failed|multiarray failed to import')
_LIBRARY = re.compile(r'(lib[\w.+-]+): cannot open shared object')
_PATIENCE = 120  # seconds for all imports: a first one from a network disk is slow


class Fault(NamedTuple):
    """What is wrong with which distribution, and what puts it right."""

    about: str
    what: str
    cure: str

    def __str__(self) -> str:
        return f'FAULT {self.what}; cure: {self.cure}'


def probe(names: list[str]) -> None:
    """Import each module and print, as lines of JSON, that it begins and what it found."""
    out = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)  # what a package prints at import is no line of ours
    for name in names:
        print(json.dumps({'module': name}), file=out)
        found = {'module': name, 'version': '', 'error': ''}
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter('always')
                module = importlib.import_module(name)
            found['version'] = str(getattr(module, '__version__', ''))
            # A module that loads against the wrong NumPy may fail only when it is used.
            found['error'] = next((str(w.message) for w in caught
                                   if _NUMPY.search(str(w.message))), '')
            if name == 'torch':
                found.update(_devices(module))
        except ModuleNotFoundError as error:
            found['error'], found['missing'] = str(error), error.name
        except (Exception, SystemExit) as error:
            found['error'] = f'{type(error).__name__}: {error}'
        print(json.dumps(found), file=out)


def _devices(torch) -> dict:
    """What torch was built for and what it finds."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        usable = torch.cuda.is_available()
    gpus = range(torch.cuda.device_count() if usable else 0)
    return dict(
        cuda=torch.version.cuda, threads=torch.get_num_threads(),
        archs=torch.cuda.get_arch_list(), usable=usable,
        trouble=str(caught[0].message) if caught else '',
        bf16=torch.cuda.is_bf16_supported() if usable else True,
        gpus=[dict(name=torch.cuda.get_device_name(i),
                   capability=list(torch.cuda.get_device_capability(i))) for i in gpus])


def import_all(names: list[str]) -> dict[str, dict]:
    """What ``probe`` found for each module; one that ends the process has an error too."""
    found: dict[str, dict] = {}
    while rest := [name for name in names if name not in found]:
        command = [sys.executable, '-c', 'import sys; from suite.doctor import probe; '
                   'probe(sys.argv[1:])', *rest]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                                  timeout=_PATIENCE)
            output, end = done.stdout, f'ends the process with status {done.returncode}'
        except subprocess.TimeoutExpired as late:
            output, end = (late.stdout or b'').decode(), f'takes more than {_PATIENCE} s'
        begun = rest[0]
        for line in output.splitlines():
            with contextlib.suppress(ValueError):  # cut off by the end of the process
                report = json.loads(line)
                begun = report['module']
                if 'error' in report:
                    found[begun] = report
        found.setdefault(begun, {'module': begun, 'version': '', 'error': end})
    return found


def _distributions() -> dict[str, str]:
    """Normalised name -> version of everything installed."""
    return {re.sub(r'[-_.]+', '-', name).lower(): d.version
            for d in metadata.distributions() if (name := d.metadata['Name'])}


def _minima() -> dict[str, str]:
    """Distribution -> least version, of what setup.cfg requires."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    lines = setup['options']['install_requires'].split()
    return {name: least for name, _, least in (line.partition('>=') for line in lines)}


def _wanted_torch() -> str:
    """The torch version that the installed torchvision names as its own, or nothing."""
    try:
        requires = metadata.requires('torchvision') or []
    except metadata.PackageNotFoundError:
        return ''
    return next((m[1] for r in requires if (m := re.match(r'torch\W*==\s*([\w.]+)', r))), '')


def _driver() -> dict:
    """Name, driver version of the first NVIDIA GPU; empty where there is none."""
    command = ['nvidia-smi', '--query-gpu=name,driver_version', '--format=csv,noheader']
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        name, version = lines.stdout.splitlines()[0].split(', ')
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return {}
    return dict(name=name, version=version)


def gather() -> dict:
    """All facts that ``faults`` and ``summary`` read."""
    data = ROOT / 'data'
    return dict(
        python=list(sys.version_info[:3]), modules=import_all(list(MODULES)),
        distributions=_distributions(), minima=_minima(),
        wanted_torch=_wanted_torch(), driver=_driver(),
        hidden_gpus=os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1'),
        free_gb=shutil.disk_usage(ROOT).free / 1e9,
        data=sorted(p.name for p in data.iterdir() if p.is_dir()) if data.is_dir() else [])


def faults(facts: dict) -> list[Fault]:
    """What is wrong, causes before consequences, at most one line per distribution."""
    checks = (_python, _upstream, _requirements, _pair, _opencv, _imports, _cuda)
    found = [fault for check in checks for fault in check(facts)]
    return list({fault.about: fault for fault in reversed(found)}.values())[::-1]


def _install(*names: str, again: bool = False) -> str:
    """The command that installs distributions in their tested versions."""
    options = []
    if again:
        options = ['--force-reinstall', '--no-deps', '--no-cache-dir']
    elif 'onedl-mmcv' in names:
        options = ['--no-deps', '--no-cache-dir']
    if 'onedl-mmcv' in names:  # see tools/env.sh
        options += ['--no-binary', 'onedl-mmcv']
    return ' '.join(['python -m pip install -c', CONSTRAINTS, *options, *names])


def _numbers(version: str) -> list[int]:
    return [int(n) for n in re.findall(r'\d+', version.split('+')[0])]


def _python(facts: dict) -> Iterator[Fault]:
    if facts['python'] < [3, 10]:
        version = '.'.join(map(str, facts['python']))
        yield Fault('python', f'Python {version} is older than 3.10',
                    'PYTHON=python3.12 bash tools/env.sh pytest')


def _upstream(facts: dict) -> Iterator[Fault]:
    for theirs, ours in UPSTREAM.items():
        if theirs in facts['distributions']:
            where = 'beside' if ours in facts['distributions'] else 'in place of'
            yield Fault(ours, f'{theirs} {facts["distributions"][theirs]} is installed {where} '
                        f'{ours}', f'python -m pip uninstall -y {theirs} {ours}; {_install(ours)}')


def _requirements(facts: dict) -> Iterator[Fault]:
    imported = {MODULES[name][0] for name, found in facts['modules'].items()
                if not found['error']}
    for name, least in facts['minima'].items():
        version = facts['distributions'].get(name)
        if version is None and name not in imported:
            yield Fault(name, f'{name} is not installed', _install(name))
        elif version and _numbers(version) < _numbers(least):
            yield Fault(name, f'{name} {version} is older than {least}', _install(name))


def _pair(facts: dict) -> Iterator[Fault]:
    torch, vision = (facts['modules'][name] for name in ('torch', 'torchvision'))
    wanted = facts['wanted_torch']
    if torch['error'] or 'missing' in vision:
        return
    if (wanted and torch['version'].split('+')[0] != wanted) or vision['error']:
        version = facts['distributions'].get('torchvision', vision['version'])
        why = _line(vision['error']) or f'it wants torch {wanted}'
        yield Fault('torchvision', f'torchvision {version} does not fit torch '
                    f'{torch["version"]} ({why})',
                    f'python -m pip install --force-reinstall -c {CONSTRAINTS} torch torchvision')


def _opencv(facts: dict) -> Iterator[Fault]:
    wheels = {name: version for name, version in facts['distributions'].items()
              if name.startswith('opencv-')}
    cure = (f'python -m pip install --no-deps -c {CONSTRAINTS} opencv-python && python -m pip '
            f'install --no-deps --force-reinstall -c {CONSTRAINTS} opencv-python-headless')
    if len(set(wheels.values())) > 1:
        both = ' and '.join(f'{name} {version}' for name, version in sorted(wheels.items()))
        yield Fault('opencv-python-headless', f'{both} write the same folder', cure)
    elif library := _LIBRARY.search(facts['modules']['cv2']['error']):
        yield Fault('opencv-python-headless',
                    f'cv2 needs {library[1]}, which this machine lacks', cure)


def _imports(facts: dict) -> Iterator[Fault]:
    modules = facts['modules']
    for name, (distribution, needs) in MODULES.items():
        error = modules[name]['error']
        if not error or any(modules[need]['error'] for need in needs):
            continue
        missing = modules[name].get('missing')
        if name == 'mmcv._ext':
            if missing != name:
                yield Fault(distribution, "mmcv's compiled ops were built for another torch "
                            f'({_line(error)})', _install(distribution, again=True))
        elif missing:
            yield Fault(distribution, f'{name} finds no module {missing}',
                        f'python -m pip install -c {CONSTRAINTS} -e .')
        elif _NUMPY.search(error):
            yield Fault(distribution, f'{name} was compiled against another NumPy than '
                        f'{modules["numpy"]["version"]}',
                        _install('numpy', distribution, again=True))
        else:
            yield Fault(distribution, f'{name} does not import ({_line(error)})',
                        _install(distribution, again=True))


def _line(error: str) -> str:
    """The telling line of an error: its last."""
    return (error.strip().splitlines() or [''])[-1][:160]


def _cuda(facts: dict) -> Iterator[Fault]:
    torch, driver = facts['modules']['torch'], facts['driver']
    if torch['error'] or facts['hidden_gpus']:
        return
    older = ('python -m pip install --force-reinstall --extra-index-url '
             f'https://download.pytorch.org/whl/cu126 -c {CONSTRAINTS} torch torchvision')
    if not torch['cuda']:
        if driver:
            yield Fault('cuda', f'torch {torch["version"]} is built without CUDA, yet there is '
                        f'a {driver["name"]}',
                        f'python -m pip install --force-reinstall -c {CONSTRAINTS} torch '
                        'torchvision')
    elif 'too old' in torch['trouble']:
        yield Fault('cuda', f'NVIDIA driver {driver.get("version", "")} is too old for CUDA '
                    f'{torch["cuda"]}', f'update the driver, or {older}')
    elif driver and not torch['usable']:
        yield Fault('cuda', f'CUDA does not start on the {driver["name"]} '
                    f'({_line(torch["trouble"]) or "no reason given"})',
                    'see whether nvidia-smi lists the GPU as free and healthy; restart the '
                    'driver')
    for gpu in torch['gpus']:
        if not _runs_on(gpu['capability'], torch['archs']):
            major, minor = gpu['capability']
            yield Fault('cuda', f'torch {torch["version"]} has no code for the {gpu["name"]} '
                        f'(sm_{major}{minor}; it has {", ".join(torch["archs"])})', older)


def _runs_on(capability: list[int], archs: list[str]) -> bool:
    """Binary code runs on later minors of its major, PTX on everything later."""
    major, minor = capability
    for kind, a, b in re.findall(r'(sm|compute)_(\d+)(\d)', ' '.join(archs)):
        code = (int(a), int(b))
        if code <= (major, minor) and (kind == 'compute' or code[0] == major):
            return True
    return False


def summary(facts: dict) -> list[str]:
    """What is installed and what it runs on, a line each."""
    modules, versions = facts['modules'], facts['distributions']
    rows = {'python': '.'.join(map(str, facts['python']))}
    for name, (distribution, _) in MODULES.items():
        rows[name.partition('.')[0]] = (modules[name]['version'] or
                                        versions.get(distribution, 'absent'))
    torch = modules['torch']
    rows['torch'] += f' (CUDA {torch["cuda"]})' if torch.get('cuda') else ' (CPU)'
    ops = 'torchvision stand-in' if modules['mmcv._ext']['error'] else 'compiled'
    rows['mmcv'] = f'{modules["mmcv"]["version"] or "absent"} (ops: {ops})'
    gpus = [f'{gpu["name"]} (sm_{"".join(map(str, gpu["capability"]))})'
            for gpu in torch.get('gpus', [])]
    rows['device'] = ', '.join(gpus) or 'cpu'
    rows['bf16'] = 'yes' if torch.get('bf16') else 'no'
    rows['threads'] = str(torch.get('threads', ''))
    rows['disk'] = f'{facts["free_gb"]:.0f} GB free'
    rows['data'] = ', '.join(facts['data']) or 'nothing under data/'
    return [f'{name:<17}{value}' for name, value in rows.items()]


def report() -> int:
    """Print the summary, then OK or a line per fault; 1 where there is one."""
    facts = gather()
    wrong = faults(facts)
    print('\n'.join([*summary(facts), *map(str, wrong)] if wrong else [*summary(facts), 'OK']))
    return int(bool(wrong))
