"""suite/doctor.py: each fault by its facts, then the tool on good and broken installations."""
from __future__ import annotations

import copy
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from suite import doctor

ROOT = Path(__file__).resolve().parent.parent
GPU = dict(name='NVIDIA H200', capability=[9, 0])
DRIVER = dict(name='NVIDIA H200', version='550.54')
ARCHS = ['sm_75', 'sm_80', 'sm_90', 'sm_120']


def module(version: str = '1.0', error: str = '', **more) -> dict:
    return dict(version=version, error=error, **more)


def good() -> dict:
    """Facts of a sound installation on a machine with a GPU."""
    modules = {name: module() for name in doctor.MODULES}
    modules['torch'] = module('2.12.1+cu130', cuda='13.0', threads=8, archs=ARCHS, usable=True,
                              trouble='', bf16=True, gpus=[GPU])
    modules['torchvision'] = module('0.27.1+cu130')
    modules['numpy'] = module('2.2.6')
    modules['mmcv._ext'] = module('', "No module named 'mmcv._ext'", missing='mmcv._ext')
    distributions = {distribution: '3.0' for distribution, _ in doctor.MODULES.values()}
    distributions |= {'torchvision': '0.27.1', 'opencv-python': '3.0'}
    return dict(python=[3, 11, 7], modules=modules, distributions=distributions,
                minima={name: '' for name in distributions} | {'torch': '2.6'},
                wanted_torch='2.12.1', driver=DRIVER, hidden_gpus=False, free_gb=75.,
                data=['ade', 'coco'])


def broken(**changes) -> list[doctor.Fault]:
    """The faults of ``good()`` with modules (given by name), or other facts, changed."""
    facts = copy.deepcopy(good())
    for name, value in changes.items():
        if name in doctor.MODULES:
            facts['modules'][name] |= value
        elif isinstance(value, dict) and name != 'driver':
            facts[name] |= value
        else:
            facts[name] = value
    return doctor.faults(facts)


def test_good_facts_have_no_fault():
    assert doctor.faults(good()) == []
    text = '\n'.join(doctor.summary(good()))
    for words in ('2.12.1+cu130 (CUDA 13.0)', 'ops: torchvision stand-in', 'H200 (sm_90)',
                  '75 GB free', 'ade, coco'):
        assert words in text


def test_summary_without_torch():
    facts = good()
    facts['modules']['torch'] = module('', "No module named 'torch'", missing='torch')
    assert any(line.startswith('device') and line.endswith('cpu')
               for line in doctor.summary(facts))


UNDEFINED = 'ImportError: mmcv/_ext.so: undefined symbol: _ZN2at4_ops'
OTHER_NUMPY = ('ValueError: numpy.dtype size changed, may indicate binary incompatibility. '
               'Expected 96 from C header, got 88 from PyObject')


@pytest.mark.parametrize('changes, what, cure', [
    (dict(python=[3, 9, 18]), 'Python 3.9.18 is older than 3.10', 'PYTHON='),
    (dict(torchvision=dict(error='RuntimeError: operator torchvision::nms does not exist')),
     'torchvision 0.27.1 does not fit torch 2.12.1+cu130 (RuntimeError: operator '
     'torchvision::nms does not exist)', '--force-reinstall'),
    (dict(wanted_torch='2.11.0'), 'it wants torch 2.11.0', 'torch torchvision'),
    ({'mmcv._ext': module('', UNDEFINED, missing=None)},
     "mmcv's compiled ops were built for another torch", '--no-binary onedl-mmcv'),
    ({'mmcv._ext': module('', 'ImportError: libcudart.so.12: cannot open shared object file',
                          missing=None)}, 'built for another torch', '--force-reinstall'),
    (dict(distributions={'mmcv': '2.1.0'}), 'mmcv 2.1.0 is installed beside onedl-mmcv',
     'uninstall -y mmcv onedl-mmcv'),
    (dict(distributions={'mmdet': '3.3.0'}), 'mmdet 3.3.0 is installed beside',
     'uninstall -y mmdet onedl-mmdetection'),
    ({'pycocotools.mask': dict(error=OTHER_NUMPY)},
     'pycocotools.mask was compiled against another NumPy than 2.2.6', 'numpy pycocotools'),
    (dict(cv2=dict(error='ImportError: numpy.core.multiarray failed to import')),
     'cv2 was compiled against another NumPy', 'numpy opencv-python-headless'),
    (dict(torch=dict(error='A module that was compiled using NumPy 1.x cannot be run in\n'
                           'NumPy 2.2.6')), 'torch was compiled against another NumPy', 'numpy'),
    (dict(distributions={'opencv-python': '5.0'}),
     'opencv-python 5.0 and opencv-python-headless 3.0 write the same folder',
     '--force-reinstall -c tools/constraints.txt opencv-python-headless'),
    (dict(cv2=dict(error='ImportError: libGL.so.1: cannot open shared object file: No such '
                         'file or directory')), 'cv2 needs libGL.so.1', 'opencv-python-headless'),
    (dict(minima={'tensorboard': ''}), 'tensorboard is not installed',
     'pip install -c tools/constraints.txt tensorboard'),
    (dict(minima={'torch': '3.0.1'}), 'torch 3.0 is older than 3.0.1', 'torch'),
    (dict(mmseg=dict(error="No module named 'ftfy'", missing='ftfy')),
     'mmseg finds no module ftfy', '-e .'),
    (dict(mmdet=dict(error='ends the process with status -11')),
     'mmdet does not import (ends the process with status -11)', 'onedl-mmdetection'),
    (dict(torch=dict(cuda=None, archs=[], usable=False, gpus=[])),
     'built without CUDA, yet there is a NVIDIA H200', 'torch torchvision'),
    (dict(torch=dict(usable=False, gpus=[], trouble='CUDA initialization: The NVIDIA driver on '
                     'your system is too old (found version 12040).')),
     'NVIDIA driver 550.54 is too old for CUDA 13.0', 'whl/cu126'),
    (dict(torch=dict(usable=False, gpus=[], trouble='CUDA unknown error')),
     'CUDA does not start on the NVIDIA H200 (CUDA unknown error)', 'nvidia-smi'),
    (dict(torch=dict(gpus=[dict(name='Tesla P100', capability=[6, 0])])),
     'has no code for the Tesla P100 (sm_60; it has sm_75', 'whl/cu126'),
])
def test_each_fault_is_one_line_with_its_cure(changes, what, cure):
    (fault,) = broken(**changes)
    assert what in fault.what and cure in fault.cure
    assert '\n' not in str(fault) and str(fault).startswith('FAULT ')


def test_upstream_in_place_of_ours_is_one_fault():
    facts = good()
    del facts['distributions']['onedl-mmcv']
    facts['distributions']['mmcv'] = '2.1.0'
    (fault,) = doctor.faults(facts)
    assert 'mmcv 2.1.0 is installed in place of onedl-mmcv' in fault.what


def test_consequences_are_not_reported():
    gone = dict(error="No module named 'torch'", missing='torch')
    facts = good()
    for name in ('torch', 'torchvision', 'timm', 'mmengine', 'mmcv', 'mmcv._ext', 'mmdet'):
        facts['modules'][name] |= gone
    del facts['distributions']['torch']
    (fault,) = doctor.faults(facts)
    assert fault.what == 'torch is not installed'


def test_no_fault_where_the_gpu_is_hidden_or_absent():
    cpu = dict(cuda=None, archs=[], usable=False, gpus=[])
    assert broken(torch=cpu, hidden_gpus=True) == []
    assert broken(torch=cpu, driver={}) == []
    assert broken(torch=dict(usable=False, gpus=[]), driver={}) == []


@pytest.mark.parametrize('capability, archs, runs', [
    ([9, 0], ['sm_90'], True), ([9, 0], ['sm_90a'], True), ([8, 9], ['sm_80', 'sm_86'], True),
    ([8, 0], ['sm_86'], False), ([10, 0], ['sm_90'], False), ([12, 1], ['sm_120'], True),
    ([10, 0], ['sm_80', 'compute_90'], True), ([7, 0], ['sm_75', 'compute_75'], False),
])
def test_which_code_runs_on_which_gpu(capability, archs, runs):
    assert doctor._runs_on(capability, archs) is runs


def run_tool(python: str, *path: Path) -> subprocess.CompletedProcess:
    """tools/doctor.py without GPUs and with fake packages in front."""
    environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': '',
                   'PYTHONPATH': os.pathsep.join(map(str, path))}
    return subprocess.run([python, str(ROOT / 'tools/doctor.py')], cwd='/', env=environment,
                          capture_output=True, text=True)


def test_this_installation_is_ok():
    done = run_tool(sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == 'OK'


@pytest.fixture
def fakes(tmp_path):
    """Packages that import in no time, to be broken by a test."""
    for name in doctor.MODULES:
        if name != 'mmcv._ext':
            path = tmp_path / name.replace('.', '/')
            path.mkdir(parents=True)
            (path / '__init__.py').write_text("__version__ = '1.0'\n")
    (tmp_path / 'pycocotools/__init__.py').touch()
    (tmp_path / 'torch/__init__.py').write_text(
        'from importlib import metadata\n'
        "__version__ = metadata.version('torch')\n"
        'class version: cuda = None\n'
        'class cuda:\n'
        '    is_available = staticmethod(lambda: False)\n'
        '    get_arch_list = staticmethod(list)\n'
        'def get_num_threads(): return 1\n')
    return tmp_path


def test_fakes_are_ok(fakes):
    done = run_tool(sys.executable, fakes)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, 'OK'), done.stdout


def test_broken_packages_take_neither_the_doctor_nor_each_other_down(fakes):
    bodies = {
        'torchvision/__init__': "raise RuntimeError('operator torchvision::nms does not exist')",
        'timm/__init__': 'import torchvision',
        'cv2/__init__': "raise ImportError('libGL.so.1: cannot open shared object file')",
        'pycocotools/mask/__init__': "raise ValueError('numpy.dtype size changed')",
        'faster_coco_eval/__init__': "import sys; print('{noise'); sys.exit(3)",
        'mmcv/_ext': "raise ImportError('_ext.so: undefined symbol: _ZN2at4_ops')",
        'mmseg/__init__': 'import os; os.abort()',
    }
    for name, body in bodies.items():
        (fakes / f'{name}.py').write_text(body)
    done = run_tool(sys.executable, fakes)
    assert done.returncode == 1 and done.stderr == ''
    lines = [line for line in done.stdout.splitlines() if line.startswith('FAULT')]
    assert done.stdout.splitlines()[-len(lines):] == lines
    expected = ('torchvision::nms does not exist', 'cv2 needs libGL.so.1',
                'pycocotools.mask was compiled against another NumPy than 1.0',
                'faster_coco_eval does not import (SystemExit: 3)',
                "mmcv's compiled ops were built for another torch",
                'mmseg does not import (ends the process with status -6)')
    for words in expected:
        assert sum(words in line for line in lines) == 1, (words, lines)
    assert len(lines) == len(expected)  # timm waits for torchvision's cure


def test_module_that_hangs_is_given_up(tmp_path, monkeypatch):
    (tmp_path / 'hangs.py').write_text('import time; time.sleep(60)')
    (tmp_path / 'works.py').write_text("__version__ = '7'")
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    monkeypatch.setattr(doctor, '_PATIENCE', 2)
    found = doctor.import_all(['hangs', 'works'])
    assert found['hangs']['error'] == 'takes more than 2 s'
    assert found['works'] == dict(module='works', version='7', error='')


def test_bare_python_lists_what_is_missing(tmp_path):
    venv.create(tmp_path / 'bare', symlinks=True)
    done = run_tool(str(tmp_path / 'bare/bin/python'))
    assert done.returncode == 1 and done.stderr == ''
    for name in ('torch', 'onedl-mmcv', 'rich'):
        assert f'FAULT {name} is not installed; cure: python -m pip install' in done.stdout


def test_help_needs_nothing(tmp_path):
    done = subprocess.run([sys.executable, '-S', str(ROOT / 'tools/doctor.py'), '--help'],
                          capture_output=True, text=True)
    assert done.returncode == 0 and 'Check the installation' in done.stdout
