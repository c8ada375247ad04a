"""A compiled backbone in a detector that is not."""
from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from backbones.errors import UserError

from .hooks import bare


@HOOKS.register_module()
class CompileBackbone(Hook):
    """Trains and evaluates through ``torch.compile`` of the backbone, in place: names,
    checkpoints and results stay (to rounding). Heads stay as they are: what they do
    depends on data.

    The first size of images compiles for itself, later ones share a graph of any size.

    Args:
        backend: of ``torch.compile``; ``aot_eager`` compiles nothing, to look for an error.
    """

    def __init__(self, backend: str = 'inductor'):
        self.backend = backend

    def before_run(self, runner: Runner) -> None:
        if self.backend == 'inductor':
            need_compiler()

    def before_train(self, runner: Runner) -> None:
        bare(runner.model).backbone.compile(backend=self.backend)


def need_compiler(flag: str = '--compile') -> None:
    """See that torch.compile finds the C++ compiler that it needs, before anything is
    trained.

    Args:
        flag: by which users asked for it.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise UserError(f'{flag} needs a C++ compiler, and torch found none (g++, or the one '
                        f'that CXX names); install one or leave {flag} out') from error
