"""Tiles of an image: overlapping ones to train on, and windows whose cores add up to it."""
from __future__ import annotations

from typing import NamedTuple

from tqdm import tqdm

from .errors import DataError

_MANY = 50  # windows from which on a person wants to see that something happens


class Window(NamedTuple):
    """A rectangle to look at, and the part of it that counts; all in pixels of the image.

    Attributes:
        y, x, height, width: the rectangle.
        core: (y0, x0, y1, x1), ends excluded.
    """

    y: int
    x: int
    height: int
    width: int
    core: tuple[int, int, int, int]


def positions(length: int, tile: int, stride: int) -> list[int]:
    """Where tiles start: every ``stride``, the last one flush with the end; just 0 where
    the length fits in one tile."""
    last = max(length - tile, 0)
    return [*range(0, last, stride), last]


def windows(height: int, width: int, tile: int, overlap: int) -> list[Window]:
    """Cover an image, row by row, with windows of ``tile`` x ``tile`` pixels (of the image's
    own extent where that is less).

    Neighbours share at least ``2 * overlap`` pixels. Cores partition the image and keep
    at least ``overlap`` pixels from the rims of their windows that are not the image's.

    Raises:
        DataError: the tile is too small for the overlap.
    """
    if overlap < 0 or tile <= 2 * overlap:
        raise DataError(f'windows of {tile} px cannot overlap by {overlap} px on each side; the '
                        f'tile must be larger than {2 * overlap} px')
    return [Window(y, x, min(tile, height), min(tile, width), (y0, x0, y1, x1))
            for y, y0, y1 in _spans(height, tile, overlap)
            for x, x0, x1 in _spans(width, tile, overlap)]


def _spans(length: int, tile: int, overlap: int) -> list[tuple[int, int, int]]:
    """(start, start of the core, end of the core) of the windows along one axis."""
    starts = positions(length, tile, tile - 2 * overlap)
    middles = [(one + tile + other) // 2 for one, other in zip(starts, starts[1:])]
    return list(zip(starts, [0, *middles], [*middles, length]))


def progress(total: int) -> tqdm:
    """A bar for the windows of one image, shown on a terminal where they are many."""
    return tqdm(total=total, desc='windows', leave=False,
                disable=None if total >= _MANY else True)
