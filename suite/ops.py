"""torchvision stands in for mmcv's compiled ops where those cannot be imported.

mmcv keeps its kernels in the extension ``mmcv._ext``, which takes 12-20 minutes to
compile. Our protocols need three of them; torchvision has all three. ``install()``
offers a module of that name with ``nms``, ``roi_align_forward`` and
``roi_align_backward``; any other op imports, and raises when it is called. A compiled
``mmcv._ext`` that imports is used instead.

``python -m suite.ops SCRIPT ARGS...`` runs somebody else's script, such as mmdet's own
``tools/test.py``, with the stand-in in place.
"""
from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import torch
import torchvision
from torch import Tensor

NAME = 'mmcv._ext'


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the kept boxes, by descending score.

    Args:
        boxes: N x 4, x1 y1 x2 y2, in pixels.
        scores: N.
        offset: 1 where x2 - x1 + 1 is the width of a box (inclusive pixels), else 0.
    """
    # An inclusive box covers the same pixels as one whose far edge is 1 further. Widened
    # first: above 2048, float16 cannot add 1.
    boxes = _widen(boxes)
    boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torchvision.ops.nms(boxes, scores.to(boxes.dtype), iou_threshold)


def roi_align_forward(input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor,
                      argmax_x: Tensor, *, aligned_height: int, aligned_width: int,
                      spatial_scale: float, sampling_ratio: int, pool_mode: int,
                      aligned: bool) -> None:
    """Average-pooled RoIAlign into ``output`` (K x C x aligned_height x aligned_width).

    Args:
        input: B x C x H x W.
        rois: K x 5, batch index and x1 y1 x2 y2 in image pixels.
        pool_mode: 1, average; 0 (max) is not offered.
        argmax_x, argmax_y: of max pooling, unused.
    """
    _need_average(pool_mode)
    input = _widen(input)
    output.copy_(torchvision.ops.roi_align(
        input, rois.to(input.dtype), (aligned_height, aligned_width), spatial_scale,
        sampling_ratio, aligned))


def roi_align_backward(grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor,
                       grad_input: Tensor, *, aligned_height: int, aligned_width: int,
                       spatial_scale: float, sampling_ratio: int, pool_mode: int,
                       aligned: bool) -> None:
    """Gradient of ``roi_align_forward`` into ``grad_input`` (B x C x H x W)."""
    _need_average(pool_mode)
    grad_output = _widen(grad_output)
    grad_input.copy_(torch.ops.torchvision._roi_align_backward(
        grad_output, rois.to(grad_output.dtype), spatial_scale, aligned_height, aligned_width,
        *grad_input.shape, sampling_ratio, aligned))


def _widen(tensor: Tensor) -> Tensor:
    """torchvision has no kernels for bfloat16, and adds up float16 gradients in float16."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _need_average(pool_mode: int) -> None:
    if pool_mode != 1:
        _missing('roi_align with max pooling')()


def _missing(op: str) -> Callable:
    def raise_missing(*args, **kwargs):
        raise NotImplementedError(
            f'mmcv op {op!r} needs compiled mmcv ops, which are not installed here; cure: '
            'pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps '
            '--no-binary onedl-mmcv onedl-mmcv (12-20 minutes, with a C++ compiler)')
    return raise_missing


def _look_up(op: str) -> Callable:
    if op.startswith('__'):
        raise AttributeError(op)
    return _missing(op)


def compiled() -> bool:
    """Whether mmcv's own compiled ops import."""
    module = sys.modules.get(NAME)
    if module is None:
        try:
            module = importlib.import_module(NAME)
        except (ImportError, OSError):  # absent, or built for another torch
            return False
    return module.__spec__.loader is not None


def install() -> None:
    """Put the stand-in in place, unless mmcv's compiled ops import."""
    if compiled() or NAME in sys.modules:
        return
    module = ModuleType(NAME, __doc__)
    module.__spec__ = ModuleSpec(NAME, loader=None, origin=__file__)
    module.nms = nms
    module.roi_align_forward = roi_align_forward
    module.roi_align_backward = roi_align_backward
    module.__getattr__ = _look_up
    sys.modules[NAME] = module


if __name__ == '__main__':
    if len(sys.argv) < 2:
        sys.exit('usage: python -m suite.ops SCRIPT ARGS...')
    if not Path(sys.argv[1]).is_file():
        sys.exit(f'error: no such script: {sys.argv[1]}')
    install()
    sys.argv = sys.argv[1:]
    # As `python SCRIPT` has it; the current folder stays, for what a config imports.
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    runpy.run_path(sys.argv[0], run_name='__main__')
