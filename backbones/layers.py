"""Pieces that several systems share. Maps here are B x H x W x C, except in modules that
say otherwise.

A system's own table layout, if it is not height-major, is brought to (2h-1) x (2w-1) x
heads first; everything below is independent of who trained it.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn


def pad_to_multiple(x: Tensor, multiple: tuple[int, int]) -> Tensor:
    """Zeros below and to the right of a map, up to the next multiples.

    Args:
        x: B x H x W x C.
        multiple: of the height and of the width.
    """
    below, right = (-size % step for size, step in zip(x.shape[1:3], multiple))
    return F.pad(x, (0, 0, 0, right, 0, below)) if below or right else x


def window_partition(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Cut a map into windows, row by row.

    Args:
        x: B x H x W x C, H and W multiples of the window.
        window: height h and width w.

    Returns:
        (B * H/h * W/w) x (h * w) x C.
    """
    h, w = window
    x = x.unflatten(2, (-1, w)).unflatten(1, (-1, h))
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def window_reverse(t: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Inverse of ``window_partition``.

    Args:
        t: (B * H/h * W/w) x (h * w) x C.
        window: h, w.
        size: H, W.

    Returns:
        B x H x W x C.
    """
    h, w = window
    rows, columns = size[0] // h, size[1] // w
    x = t.unflatten(1, window).unflatten(0, (-1, rows, columns))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def in_windows(function: Callable[[Tensor], Tensor], x: Tensor, window: int,
               shift: int = 0) -> Tensor:
    """Apply a function to every window of a map, padded with zeros to whole windows.

    Args:
        function: N x tokens x C -> N x tokens x D.
        x: B x H x W x C.
        window: side of a window.
        shift: rows and columns by which the padded map is rolled up and left meanwhile.

    Returns:
        B x H x W x D.
    """
    height, width = x.shape[1:3]
    x = pad_to_multiple(x, (window, window))
    padded = x.shape[1:3]
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
    x = function(window_partition(x, (window, window)))
    x = window_reverse(x, (window, window), padded)
    if shift:
        x = x.roll((shift, shift), (1, 2))
    return x[:, :height, :width]


def shift_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """What keeps tokens apart that only the roll of a shifted map made neighbours.

    Args:
        height, width: of the map, before padding; its regions are those of the padded map.
        window: side of a window; the shift is half of it.

    Returns:
        windows x window**2 x window**2: 0 within a region, -100 between regions.
    """
    def regions(size: int) -> Tensor:
        size += -size % window
        position = torch.arange(size, device=device)
        return (position >= size - window).long() + (position >= size - window // 2)

    labels = 3 * regions(height)[:, None] + regions(width)
    labels = window_partition(labels[None, ..., None], (window, window)).squeeze(-1)
    return (labels[:, :, None] != labels[:, None]) * -100.0


def relative_position_bias(table: Tensor, step: int = 1) -> Tensor:
    """Additive attention mask from a table over relative positions.

    The bias of query (y, x) on key (y', x') is ``table[y - y' + h-1, x - x' + w-1]``: the
    keys of a query are a window into the flipped table. Windows along x, then along y; no
    index table is kept.

    Args:
        table: (2h-1) x (2w-1) x heads.
        step: queries stand at every ``step``-th row and column of the keys only.

    Returns:
        heads x (h/step * w/step) x (h * w), rounded up, queries before keys.
    """
    h, w = (side // 2 + 1 for side in table.shape[:2])
    table = table.flip(0, 1).permute(2, 0, 1)
    columns = torch.stack(table.unfold(2, w, 1).unbind(2)[::-step], 1).flatten(2)
    return torch.cat(columns.unfold(2, h * w, w).unbind(2)[::-step], 1)


def window_bias(table: Tensor, mask: Tensor | None, windows: int) -> Tensor:
    """Relative position bias and shift mask of windows, from a table in Swin's layout.

    Args:
        table: (2w-1)**2 x heads, for windows of w x w.
        mask: of ``shift_mask`` where the windows are shifted.
        windows: their number in all images.

    Returns:
        heads x w**2 x w**2, with a mask windows x heads x w**2 x w**2.
    """
    bias = relative_position_bias(table.unflatten(0, (math.isqrt(len(table)), -1)))
    if mask is not None:
        bias = (bias + mask[:, None]).repeat(windows // len(mask), 1, 1, 1)
    return bias


def resize_flat_table(table: Tensor, like: Tensor) -> Tensor:
    """``resize_table`` for square tables that are stored flat, N**2 x C, to the size of
    another one."""
    old, new = (math.isqrt(len(t)) for t in (table, like))
    return resize_table(table.unflatten(0, (old, old)), (new, new)).flatten(0, 1)


def resize_table(table: Tensor, size: tuple[int, int], mode: str = 'bicubic',
                 align_corners: bool = False) -> Tensor:
    """Resample a grid of vectors, such as position biases trained for another window.

    Args:
        table: H x W x C.
        size: the new H, W.
        mode: 'bicubic' or 'bilinear'; no antialiasing, in float32.
        align_corners: whether the outer vectors stay the outer ones.
    """
    if tuple(table.shape[:2]) == tuple(size):
        return table
    grid = table.float().permute(2, 0, 1)[None]
    grid = F.interpolate(grid, size, mode=mode, align_corners=align_corners)
    return grid[0].permute(1, 2, 0).to(table.dtype)


class _WideDepthwise(torch.autograd.Function):
    """A depthwise convolution and its gradients, each by a depthwise convolution again: that
    of the kernel filters the map, with the output's gradient as kernel, as large as a map."""

    @staticmethod
    @torch.amp.custom_fwd(device_type='cpu')
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        padding = [side // 2 for side in weight.shape[2:]]
        return F.conv2d(x, weight, bias, padding=padding, groups=len(weight))

    @staticmethod
    @torch.amp.custom_bwd(device_type='cpu')
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        padding = [side // 2 for side in weight.shape[2:]]
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = F.conv2d(grad, weight.flip(2, 3), padding=padding, groups=len(weight))
        if ctx.needs_input_grad[1]:
            maps, size = x.shape[:2].numel(), x.shape[2:]
            of_weight = F.conv2d(x.reshape(1, maps, *size), grad.reshape(maps, 1, *size),
                                 padding=padding, groups=maps)
            of_weight = of_weight.view(len(x), *weight.shape).sum(0)
        if ctx.needs_input_grad[2]:
            of_bias = grad.sum((0, 2, 3))
        return of_x, of_weight, of_bias


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that keeps the size of a B x C x H x W map.

    On the CPU PyTorch finds the gradient of a kernel from 5 x 5 on many times slower than
    need be (11 x 11: over 50 times); training there takes a way around it.

    Args:
        dim: channels.
        side: of the kernel, odd.
        bias: whether there is one.
    """

    def __init__(self, dim: int, side: int, bias: bool = True):
        super().__init__(dim, dim, side, padding=side // 2, groups=dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cpu and self.kernel_size[0] > 3 and torch.is_grad_enabled():
            return _WideDepthwise.apply(x, self.weight, self.bias)
        return super().forward(x)


class _FromChannelsLast(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.contiguous()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad.contiguous(memory_format=torch.channels_last)


def from_channels_last(x: Tensor) -> Tensor:
    """A map in channels-last memory -> in contiguous memory, B x C x H x W.

    Its gradient goes back as channels-last. ``contiguous()`` would pass it on as it came, and
    a BatchNorm whose input and gradient lie differently takes 20 times as long on a CPU.
    """
    return _FromChannelsLast.apply(x)


class Pyramid(nn.Module):
    """Maps of one stride, B x dim x H x W -> strides 4, 8, 16, 32. Ours, after the practice of
    BEiT and ViTDet.

    From stride 16: two transposed convolutions with a norm and GELU between them, one
    transposed convolution, nothing, a 2 x 2 max pool whose sizes round up.

    Args:
        dim: channels, kept.
        stride: of the incoming maps: 4, 8, 16 or 32.
        levels: which of the four are wanted, ascending.
        norm: makes the norm between two transposed convolutions from ``dim``.
    """

    def __init__(self, dim: int, stride: int = 16, levels: Sequence[int] = (0, 1, 2, 3),
                 norm: Callable[[int], nn.Module] = LayerNorm2d):
        super().__init__()
        self.scales = nn.ModuleList(
            self._scale(dim, stride, 4 * 2 ** level, norm) for level in levels)

    @staticmethod
    def _scale(dim: int, stride: int, wanted: int,
               norm: Callable[[int], nn.Module]) -> nn.Sequential:
        layers: list[nn.Module] = []
        while stride > wanted:
            if layers:
                layers += norm(dim), nn.GELU()
            layers.append(nn.ConvTranspose2d(dim, dim, 2, 2))
            stride //= 2
        while stride < wanted:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            stride *= 2
        return nn.Sequential(*layers)

    def forward(self, maps: Iterable[Tensor]) -> list[Tensor]:
        """One map per level, B x dim x H x W each -> the same, at the levels' strides."""
        return [scale(x) for scale, x in zip(self.scales, maps, strict=True)]
