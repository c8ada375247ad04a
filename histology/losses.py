"""Losses of dense nuclei heads: those of HoVer-Net (Graham et al., 2019, Med. Image Anal. 58).

Plain functions. Each returns a scalar, in float32 also under autocast.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 5  # of the gradient's kernels


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean over all pixels.

    Args:
        logits: B x C x H x W.
        classes: B x H x W int64, 0 ... C - 1.
    """
    return F.cross_entropy(logits.float(), classes)


def dice_loss(logits: Tensor, classes: Tensor, smooth: float = 1e-3) -> Tensor:
    """1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth), summed over the classes,
    background included; p are probabilities, the sums run over all pixels of the batch.

    Args:
        logits: B x C x H x W.
        classes: B x H x W int64, 0 ... C - 1.
    """
    found = logits.float().softmax(1)
    true = F.one_hot(classes, logits.shape[1]).movedim(-1, 1).to(found)
    shared, total = (x.sum((0, 2, 3)) for x in (found * true, found + true))
    return (1 - (2 * shared + smooth) / (total + smooth)).sum()


def hv_mse(found: Tensor, true: Tensor) -> Tensor:
    """Mean squared error over all pixels of both maps, B x 2 x H x W each."""
    return F.mse_loss(found.float(), true)


def _kernels(like: Tensor) -> Tensor:
    """2 x 1 x SIDE x SIDE, the derivatives along x and along y: offset / squared distance."""
    offsets = torch.arange(SIDE, device=like.device, dtype=like.dtype) - SIDE // 2
    y, x = torch.meshgrid(offsets, offsets, indexing='ij')
    return torch.stack([x, y])[:, None] / (x ** 2 + y ** 2 + 1e-15)


def hv_gradient(maps: Tensor, crossed: bool = False) -> Tensor:
    """Derivative of the x map along x and of the y map along y, up to a common factor (12
    for a unit slope); maps end in zeros.

    Args:
        maps: B x 2 x H x W, (x, y).
        crossed: along y and along x instead, as both official versions of HoVer-Net
            compute it, against what the paper says.
    """
    kernels = _kernels(maps)
    return F.conv2d(maps, kernels.flip(0) if crossed else kernels, padding=SIDE // 2, groups=2)


def hv_gradient_mse(found: Tensor, true: Tensor, inside: Tensor, crossed: bool = False) -> Tensor:
    """Mean squared error of ``hv_gradient`` over the pixels of nuclei.

    Args:
        found, true: B x 2 x H x W.
        inside: B x H x W bool.
        crossed: see ``hv_gradient``.
    """
    with torch.autocast(found.device.type, enabled=False):
        difference = hv_gradient(found.float() - true, crossed)
    inside = inside[:, None].to(difference)
    return (difference ** 2 * inside).sum() / (2 * inside.sum() + 1e-8)
