"""COCO annotations of nuclei in whole images and in tiles."""
from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .labels import encode, separate
from .tiling import positions

TILE, STRIDE = 256, 128
# What a rim leaves of a nucleus is too little to learn from below these.
_LEAST_AREA, _LEAST_SHARE = 10, 0.1


class Picture(NamedTuple):
    """A file and the nuclei in it.

    Attributes:
        file_name: relative to the folder of images.
        group: see ``catalog.Part``.
        nuclei: as ``labels.encode`` gives them, ``id`` being that of the whole image.
    """

    file_name: str
    height: int
    width: int
    group: str | None
    nuclei: list[dict]


def tiles(labels: np.ndarray) -> Iterator[tuple[tuple[slice, slice], list[dict]]]:
    """Where the tiles of an image are, and their nuclei.

    A nucleus that a rim cuts in several pieces becomes several. Pieces of fewer than 10
    pixels or a tenth of their nucleus are crowds: ignored, neither objects nor background.
    """
    whole = np.bincount(labels.ravel())
    height, width = labels.shape
    for y in positions(height, TILE, STRIDE):
        for x in positions(width, TILE, STRIDE):
            place = np.s_[y:y + TILE, x:x + TILE]
            yield place, _pieces(labels[place], whole)


def _pieces(crop: np.ndarray, whole: np.ndarray) -> list[dict]:
    pieces = separate(crop)
    nucleus = np.zeros(pieces.max() + 1, int)
    nucleus[pieces.ravel()] = crop.ravel()
    nuclei = encode(pieces)
    for piece in nuclei:
        piece['id'] = int(nucleus[piece['id']])
        area = whole[piece['id']]
        piece['iscrowd'] = int(piece['area'] < area
                               and piece['area'] < max(_LEAST_AREA, _LEAST_SHARE * area))
    return nuclei


def write(path: Path, pictures: Iterable[tuple[Picture, np.ndarray | None]],
          categories: Sequence[str]) -> None:
    """Write an annotation file.

    Args:
        pictures: with the category, from 1 on, of each nucleus of their images, or None
            where all are of the first.
        categories: names.
    """
    images, annotations = [], []
    for number, (picture, types) in enumerate(pictures, 1):
        images.append(dict(id=number, file_name=picture.file_name, height=picture.height,
                           width=picture.width, group=picture.group))
        for nucleus in picture.nuclei:
            category = 1 if types is None else int(types[nucleus['id'] - 1])
            annotations.append(dict(iscrowd=0) | nucleus | dict(
                id=len(annotations) + 1, image_id=number, category_id=category))
    content = dict(
        info=dict(description='nuclei, prepared by DenseBench'), licenses=[], images=images,
        annotations=annotations,
        categories=[dict(id=number, name=name) for number, name in enumerate(categories, 1)])
    path.write_text(json.dumps(content, separators=(',', ':')))
