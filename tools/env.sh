#!/usr/bin/env bash
# Sets up an environment, once, and runs a command in it, in the checkout:
#
#     bash tools/env.sh python tools/train.py configs/dilateformer/maskrcnn_coco.py --mini
#     bash tools/env.sh pytest
#
# PYTHON            interpreter to build on    (default: the newest of python3.13 ... python3.10)
# DENSEBENCH_ENV    folder of the environment  (default: .venv in the checkout)
#
# pip's own variables hold: for a torch without CUDA parts, or with those of an older driver,
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu (or cu126, ...) at the first run.
set -euo pipefail
unset CDPATH

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 2; }

(($#)) || fail 'no command; say, for example, bash tools/env.sh pytest'
venv=${DENSEBENCH_ENV:-}
[[ -z $venv || $venv == /* ]] || venv=$PWD/$venv
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root"
venv=${venv:-$root/.venv}
constraints=$root/tools/constraints.txt

# A changed fingerprint means that something must be installed again. Both folders count,
# because scripts in an environment name its place, and an editable install the checkout.
fingerprint() {
    { "$venv/bin/python" -IV && cat setup.cfg pyproject.toml "$constraints" \
        && printf '%s\n' "$root" "$venv"; } 2>/dev/null | cksum
}

# Whether the environment is of the Python asked for, if one was.
asked() {
    [[ -z ${PYTHON:-} || "$("$PYTHON" -IV 2>&1)" == "$("$venv/bin/python" -IV 2>&1)" ]]
}

ready() { [[ -f $venv/.stamp && $(<"$venv/.stamp") == "$(fingerprint)" ]] && asked; }

# Whether the environment's scripts run, and in it: one that was moved or copied is no use.
sound() {
    local pip
    pip=$("$venv/bin/pip" --version 2>/dev/null) || return 1
    pip=${pip#* from }
    [[ ${pip%/lib/*} -ef $venv ]] && asked
}

# Prints the interpreter to build on.
find_python() {
    local candidates=(python3.13 python3.12 python3.11 python3.10 python3) python reason reasons=''
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for python in "${candidates[@]}"; do
        command -v -- "$python" >/dev/null || { reasons+="; no $python"; continue; }
        if reason=$("$python" -I - 2>&1 <<'PYTHON'
import sys
version = '{}.{}.{}'.format(*sys.version_info)
if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.exit(version)
try:
    import ensurepip, venv
except ImportError:
    sys.exit(version + ' without venv (Debian, Ubuntu: apt install python3-venv)')
PYTHON
        ); then
            printf '%s\n' "$python"
            return
        fi
        reasons+="; $python is ${reason##*$'\n'}"
    done
    fail "needs Python 3.10 to 3.13 with venv${reasons}; install one, or name one by PYTHON=PATH"
}

install() {
    local log=$venv/pip.log status=0
    # Isolated: what PYTHONPATH offers is not installed.
    PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 "$venv/bin/python" -I -m pip install \
        --no-input --no-compile -c "$constraints" "$@" >"$log" 2>&1 || status=$?
    if ((status)); then
        tail -n 15 "$log" >&2
        say "error: pip failed, the whole of it is in $log; look after the network and the free" \
            'space (7 GB), then run the same command again'
        exit "$status"
    fi
}

set_up() {
    if command -v flock >/dev/null && ! flock -n 9; then
        say 'waiting for another set-up of this environment...'
        flock 9 || true  # a file system without locks
    fi
    ! ready || return 0

    local python info
    if ! sound; then
        python=$(find_python)
        say "[1/3] creating $venv with $("$python" -IV)"
        rm -rf "${venv:?}"/{.stamp,bin,include,lib,lib64,share,pyvenv.cfg}
        "$python" -I -m venv "$venv" >&2
    fi
    rm -f "$venv/.stamp"
    # pip writes RECORD last: what lacks it was interrupted, yet would pass for installed.
    for info in "$venv"/lib/python*/site-packages/*.dist-info; do
        [[ -f $info/RECORD ]] || rm -rf "$info"
    done
    say "[2/3] installing torch $(sed -n 's/^torch==//p' "$constraints") (about 2 minutes)..."
    install torch torchvision
    say "[3/3] installing the rest, after $SECONDS s (about 1 minute)..."
    # Built apart from torch, hence without compiled ops, for which suite/ops.py stands in. pip's
    # cache is kept out of it: it takes wheels with and without ops, for any torch, as the same.
    install --no-deps --no-cache-dir --no-binary onedl-mmcv onedl-mmcv
    install -e '.[test]'
    # Two distributions are required that write the same cv2/; the last one counts, and it must
    # be the one that runs without libGL.
    install --no-deps --force-reinstall opencv-python-headless
    fingerprint >"$venv/.stamp"
    say "ready after $SECONDS s"
}

if ! ready; then
    # Somebody else's environment may be added to, never rebuilt.
    [[ ! -d $venv || -f $venv/.lock || -z $(ls -A "$venv") ]] || sound \
        || fail "$venv holds something else than an environment with pip of the Python asked for;" \
            'empty it, or set DENSEBENCH_ENV to another folder'
    mkdir -p "$venv"
    set_up 9>"$venv/.lock"
fi
export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
unset PYTHONHOME
exec "$@"
