"""Parameters and multiply-accumulates (MACs) of a backbone, counted without computing.

MACs are half of torch's FLOPs (``FlopCounterMode``): every matrix product and convolution
counts, also those of attention between queries, keys and values; norms, activations,
softmax, pooling, interpolation and FFTs do not. Papers often leave the products of
attention out. Modules that write a product as elementwise operations, which the counter
does not see, say how many there are by ``elementwise_macs(*inputs)``.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import backbones

SIZES = ((224, 224), (512, 512), (800, 1280))


class Complexity(NamedTuple):
    """Learnable numbers, and MACs of one image; None at a size that the network refuses."""

    parameters: int
    macs: int | None


def count(net: nn.Module, size: tuple[int, int]) -> Complexity:
    """Count a network's parameters and its MACs for one image.

    Args:
        net: in eval mode; on the meta device nothing is computed.
        size: H, W of the image.
    """
    parameters = list(net.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    if getattr(net, 'size', None) not in (None, tuple(size)):
        return Complexity(total, None)
    extra = []

    def note(module: nn.Module, inputs: tuple, _) -> None:
        extra.append(module.elementwise_macs(*inputs))

    hooks = [module.register_forward_hook(note) for module in net.modules()
             if hasattr(module, 'elementwise_macs')]
    image = torch.zeros(1, 3, *size, device=parameters[0].device)
    try:
        # Fused attention kernels are not counted everywhere; their textbook form is.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(
                display=False) as counter:
            net(image)
    finally:
        for hook in hooks:
            hook.remove()
    return Complexity(total, counter.get_total_flops() // 2 + sum(extra))


def of_backbone(name: str, size: tuple[int, int]) -> Complexity:
    """``count`` of a backbone by its name, such as 'swin_tiny'."""
    with torch.device('meta'):
        net = backbones.create(name).eval()
        return count(net, size)
