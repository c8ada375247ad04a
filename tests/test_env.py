"""tools/env.sh and .ci/run, with an interpreter that only writes down what it is asked."""
from __future__ import annotations

import configparser
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INSTALLS = ['torch torchvision', 'onedl-mmcv --no-deps', '-e .[test]', 'opencv-python-headless']

PYTHON = r'''#!/usr/bin/env bash
case "$*" in
    -IV) echo "Python ${FAKE_VERSION:-3.11.9}" ;;
    '-I -') cat >/dev/null; [[ -z ${FAKE_REASON:-} ]] || { echo "$FAKE_REASON" >&2; exit 1; } ;;
    '-I -m venv '*)
        mkdir -p "$4/bin" "$4/lib/python3.11/site-packages"
        sed "s/\${FAKE_VERSION:-3.11.9}/${FAKE_VERSION:-3.11.9}/" "$0" >"$4/bin/python"
        printf '#!/usr/bin/env bash\necho "pip 1 from %s/lib/python3.11/pip (python 3.11)"\n' \
            "$4" >"$4/bin/pip"
        printf '#!/usr/bin/env bash\necho "ran pytest $*"\n' >"$4/bin/pytest"
        printf '#!/usr/bin/env bash\necho "ran ruff $*"\n' >"$4/bin/ruff"
        chmod +x "$4"/bin/*
        touch "$4/pyvenv.cfg"
        echo venv >>"$FAKE_LOG" ;;
    '-I -m pip install '*)
        echo "$*" >>"$FAKE_LOG"
        sleep "${FAKE_SLEEP:-0}"
        [[ "$*" != *"${FAKE_FAILURE:-nothing fails}"* ]] || { echo 'no space left'; exit 7; } ;;
    *) echo "unexpected: $*" >&2; exit 99 ;;
esac
'''


class Checkout:
    """A checkout with nothing but what the set-up reads, in a folder with a space."""

    def __init__(self, folder: Path):
        self.root = folder / 'a b' / 'repo'
        self.log = folder / 'log'
        self.python = folder / 'fake python'
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)
        for name in ('tools/env.sh', 'tools/constraints.txt', '.ci/run', 'setup.cfg',
                     'pyproject.toml'):
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)

    def start(self, *command: str, **environment: str) -> subprocess.Popen:
        kept = {key: value for key, value in os.environ.items() if key != 'DENSEBENCH_ENV'}
        return subprocess.Popen(
            ['bash', self.root / 'tools/env.sh', *command], cwd='/', text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
            env={**kept, 'PYTHON': str(self.python), 'FAKE_LOG': str(self.log), **environment})

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        process = self.start(*command, **environment)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def asked(self) -> list[str]:
        """What the interpreter did since the last call."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines

    def wait_for_pip(self) -> None:
        deadline = time.monotonic() + 30
        while not self.log.exists() or 'install' not in self.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_sets_up_once_and_runs_in_the_checkout(checkout):
    first = checkout.run('bash', '-c', 'pwd; printf "%s\\n" "$@"; exit 5', '-', 'x  y', '*')
    assert first.returncode == 5
    assert first.stdout == f'{checkout.root}\nx  y\n*\n'
    assert [line[:5] for line in first.stderr.splitlines()] == ['[1/3]', '[2/3]', '[3/3]', 'ready']
    made, *installs = checkout.asked()
    assert made == 'venv' and len(installs) == 4
    for install, words in zip(installs, INSTALLS):
        assert f'-c {checkout.root}/tools/constraints.txt' in install
        assert all(word in install for word in words.split())
    # The pure wheel of mmcv neither comes from pip's cache nor goes there, and it alone.
    assert ['--no-cache-dir' in install for install in installs] == [False, True, False, False]

    second = checkout.run('pytest', '-x')
    assert (second.returncode, second.stdout, second.stderr) == (0, 'ran pytest -x\n', '')
    assert checkout.asked() == []


@pytest.mark.parametrize('name', ['tools/constraints.txt', 'setup.cfg', 'pyproject.toml'])
def test_changed_requirements_install_again_and_spare_compiled_ops(checkout, name):
    checkout.run('true')
    compiled = checkout.root / '.venv/lib/python3.11/site-packages/mmcv/_ext.so'
    compiled.parent.mkdir()
    compiled.touch()
    checkout.asked()
    with open(checkout.root / name, 'a') as file:
        file.write('\n')
    assert checkout.run('true').returncode == 0
    assert len(checkout.asked()) == 4 and compiled.exists()


def test_failing_pip_says_so_and_the_next_run_repairs(checkout):
    failed = checkout.run('true', FAKE_FAILURE='onedl-mmcv')
    assert failed.returncode == 7 and failed.stdout == ''
    *_, reason, cure = failed.stderr.splitlines()
    assert reason == 'no space left'
    assert cure.startswith('error: pip failed') and 'free space' in cure
    assert not (checkout.root / '.venv/.stamp').exists()
    checkout.asked()
    assert checkout.run('true').returncode == 0
    assert len(checkout.asked()) == 4


def test_killed_set_up_leaves_nothing_half_installed(checkout):
    process = checkout.start('true', FAKE_SLEEP='60')
    checkout.wait_for_pip()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    packages = checkout.root / '.venv/lib/python3.11/site-packages'
    whole, half = packages / 'a-1.dist-info', packages / 'torch-2.dist-info'
    whole.mkdir()
    half.mkdir()
    (whole / 'RECORD').touch()
    (half / 'METADATA').touch()
    checkout.asked()
    assert checkout.run('true').returncode == 0
    assert len(checkout.asked()) == 4
    assert whole.exists() and not half.exists()


@pytest.mark.skipif(not shutil.which('flock'), reason='no flock on this machine')
def test_two_at_once_set_up_once(checkout):
    first = checkout.start('echo', 'one', FAKE_SLEEP='0.3')
    checkout.wait_for_pip()
    second = checkout.run('echo', 'two')
    assert first.communicate()[0] == 'one\n'
    assert second.stdout == 'two\n' and 'waiting for another set-up' in second.stderr
    assert len(checkout.asked()) == 5


def test_command_that_set_up_and_runs_on_holds_no_lock(checkout):
    lasting = checkout.start('bash', '-c', 'echo up; sleep 60')
    try:
        assert lasting.stdout.readline() == 'up\n'
        (checkout.root / '.venv/.stamp').unlink()
        again = checkout.run('true')
        assert again.returncode == 0 and 'waiting' not in again.stderr
    finally:
        os.killpg(lasting.pid, signal.SIGKILL)
        lasting.communicate()


def test_copied_checkout_gets_an_environment_of_its_own(checkout):
    checkout.run('true')
    checkout.asked()
    copy = checkout.root.with_name('copy')
    shutil.copytree(checkout.root, copy)
    checkout.root = copy
    assert f'creating {copy}/.venv' in checkout.run('true').stderr
    assert checkout.asked()[0] == 'venv'


def test_another_python_rebuilds(checkout):
    checkout.run('true')
    checkout.asked()
    other = checkout.run('python', '-IV', FAKE_VERSION='3.12.4')
    assert other.stdout == 'Python 3.12.4\n' and 'with Python 3.12.4' in other.stderr
    assert checkout.asked()[0] == 'venv'


def test_environment_elsewhere(checkout, tmp_path):
    place = tmp_path / 'env'
    assert checkout.run('true', DENSEBENCH_ENV=str(place)).returncode == 0
    assert (place / '.stamp').exists() and not (checkout.root / '.venv').exists()


@pytest.mark.parametrize('content', ['lib', 'pyvenv.cfg'])
def test_folder_of_something_else_is_refused(checkout, tmp_path, content):
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis' / content).touch()
    refused = checkout.run('true', DENSEBENCH_ENV=str(tmp_path / 'thesis'))
    assert refused.returncode == 2 and 'holds something else' in refused.stderr
    assert os.listdir(tmp_path / 'thesis') == [content]


def test_environment_of_somebody_elses_is_added_to(checkout, tmp_path):
    place = tmp_path / 'env'
    subprocess.run([checkout.python, '-I', '-m', 'venv', place],
                   env={**os.environ, 'FAKE_LOG': str(checkout.log)}, check=True)
    assert checkout.run('true', DENSEBENCH_ENV=str(place)).returncode == 0
    assert checkout.asked().count('venv') == 1  # our own, above


@pytest.mark.parametrize('environment, words', [
    (dict(PYTHON='/no/python'), 'no /no/python'),
    (dict(FAKE_REASON='3.9.2'), 'fake python is 3.9.2'),
    (dict(FAKE_REASON='3.11.2 without venv (Debian, Ubuntu: apt install python3-venv)'),
     'apt install python3-venv'),
])
def test_no_usable_python_is_one_line(checkout, environment, words):
    failed = checkout.run('true', **environment)
    assert failed.returncode == 2 and failed.stdout == ''
    assert failed.stderr.startswith('error: ') and failed.stderr.count('\n') == 1
    assert words in failed.stderr and 'PYTHON=PATH' in failed.stderr


def test_no_command_is_one_line(checkout):
    failed = checkout.run()
    assert failed.returncode == 2 and failed.stderr.startswith('error: no command')
    assert checkout.asked() == []


@pytest.mark.parametrize('browser', [True, False])
def test_ci_lints_and_tests(checkout, tmp_path, browser):
    programs = tmp_path / 'programs'
    programs.mkdir()
    for name in ('apt-get', *('chromium', 'chromedriver') * browser):
        (programs / name).write_text(f'#!/bin/bash\necho "{name} $*" >>"$APT_LOG"\n')
        (programs / name).chmod(0o755)
    for name in ('bash', 'cat', 'chmod', 'cksum', 'dirname', 'flock', 'ls', 'mkdir', 'rm', 'sed',
                 'sleep', 'tail', 'touch'):
        (programs / name).symlink_to(shutil.which(name))
    apt = tmp_path / 'apt'
    done = subprocess.run(
        [checkout.root / '.ci/run'], cwd='/', capture_output=True, text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, 'CI': 'true', 'PYTHON': str(checkout.python), 'PATH': str(programs),
             'DENSEBENCH_ENV': str(checkout.root / 'env'), 'FAKE_LOG': str(checkout.log),
             'APT_LOG': str(apt)})
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'ran ruff check .\nran pytest -n 2\n'
    asked = apt.read_text().splitlines() if apt.exists() else []
    assert [line.split()[:2] for line in asked] == (
        [] if browser else [['apt-get', 'update'], ['apt-get', 'install']])


def test_constraints_pin_what_setup_requires():
    lines = [line for line in (ROOT / 'tools/constraints.txt').read_text().splitlines()
             if not line.startswith('#')]
    pattern = re.compile(r"([a-z0-9-]+)==([\w.]+)(?:; python_version (<|>=) '3\.11')?")
    pins = [pattern.fullmatch(line).groups() for line in lines]
    assert lines == sorted(lines, key=lambda line: line.split('==')[0])
    assert len({(name, marker) for name, _, marker in pins}) == len(pins)

    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    required = (setup['options']['install_requires'] + setup['options.extras_require']['test'])
    numbers = {name: [int(n) for n in version.split('.') if n.isdigit()]
               for name, version, _ in pins}
    for requirement in required.split():
        name, _, least = requirement.partition('>=')
        assert numbers[name] >= [int(n) for n in least.split('.') if n]
