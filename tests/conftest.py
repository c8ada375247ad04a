"""One torch thread: two contended ones are slower, and noisy. And small runs to share."""
from __future__ import annotations

import functools
import os
import runpy
import sys

os.environ.setdefault('OMP_NUM_THREADS', '1')

from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import NamedTuple  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)

# DilateFormer of a third of a million parameters: every part of it, as narrow as it goes.
TINY = dict(dim=24, depths=(1, 1, 1, 1), heads=(3, 3, 3, 3), dilations=(1, 2, 3))


@pytest.fixture(scope='session')
def mini_root(tmp_path_factory) -> Path:
    """Mini data of 8 + 2 images per kind; whoever spoils it takes a copy."""
    from suite.mini import make_mini
    root = tmp_path_factory.mktemp('mini')
    make_mini(root, images=8)
    return root


def forget(kind: type) -> None:
    """Drop loggers and the like, which mmengine names by the second in which a run starts:
    two runs of one second would share them."""
    kind._instance_dict.clear()
    for special in kind.__subclasses__():
        forget(special)


def load_tiny(mini_root: Path, protocol: str, options: dict | None = None, **settings):
    from mmengine.utils import ManagerMixin
    from yapf.yapflib import yapf_api

    from suite import config

    forget(ManagerMixin)
    # Making config texts pretty takes half the time of such a run.
    yapf_api.FormatCode = lambda text, **style: (text, True)
    shorter = {'train_dataloader.batch_size': 2, 'train_dataloader.dataset.indices': 4,
               'auto_scale_lr.base_batch_size': 2, 'default_hooks.logger.interval': 1}
    shorter |= ({'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2,
                 'default_hooks.checkpoint.interval': 1} if protocol.startswith('upernet')
                else {'train_cfg.max_epochs': 1})
    if 'backbone' not in settings:
        shorter['model.backbone.arch'] = TINY
    settings = dict(backbone='dilateformer_tiny', data_root=str(mini_root), mini=True) | settings
    return config.load(protocol, options=shorter | (options or {}), **settings)


@pytest.fixture
def tiny(mini_root) -> Callable:
    """``tiny('upernet_ade20k', {option: value}, backbone=...)``: a protocol's mini config with
    a tiny backbone that trains for two iterations of two images and evaluates two."""
    return functools.partial(load_tiny, mini_root)


@pytest.fixture
def no_compiler() -> Iterator[None]:
    """A machine without the C++ compiler that torch.compile needs."""
    import torch._inductor.config
    from torch._inductor.cpp_builder import cpp_compiler_search
    cpp_compiler_search.cache_clear()
    with torch._inductor.config.patch({'cpp.cxx': (None, '/nowhere/g++')}):
        yield
    cpp_compiler_search.cache_clear()


class Outcome(NamedTuple):
    """What a command line did."""

    status: int
    out: str
    err: str

    def complaint(self) -> str:
        """The one line that a user's mistake gets."""
        assert self.status == 2 and self.err.startswith('error: '), self.err
        assert self.err.count('\n') == 1 and 'Traceback' not in self.out, self.err
        return self.err.removeprefix('error: ').rstrip()


@pytest.fixture
def tool(monkeypatch, capfd) -> Callable[..., Outcome]:
    """``tool('train', *arguments)`` runs tools/train.py in this process."""
    def call(name: str, *arguments) -> Outcome:
        from mmengine.utils import ManagerMixin
        forget(ManagerMixin)
        path = Path(__file__).parents[1] / 'tools' / f'{name}.py'
        capfd.readouterr()
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.syspath_prepend(path.parent)
            patch.setattr(sys, 'argv', [str(path), *map(str, arguments)])
            runpy.run_path(str(path), run_name='__main__')
        return Outcome(stop.value.code, *capfd.readouterr())
    return call


@pytest.fixture(scope='session')
def trained(mini_root, tmp_path_factory) -> Callable[[str], Path]:
    """``trained('upernet_ade20k')``: work dir of a completed run of two iterations, with the
    resolved config and one checkpoint; not to be changed."""
    from suite import run

    @functools.cache
    def train(protocol: str) -> Path:
        work_dir = tmp_path_factory.mktemp(protocol)
        run.train(load_tiny(mini_root, protocol), str(work_dir))
        return work_dir
    return train
