"""What is found in a picture, for other programs: a label map file and a list of nuclei."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.measure import regionprops_table

_MOST_16_BIT = 2 ** 16 - 1


def save_labels(labels: np.ndarray, stem: Path) -> Path:
    """Write a label map (H x W, ids from 1 on) without loss.

    Returns:
        ``STEM.labels.png``, 16 bit; ``STEM.labels.tif``, 32 bit, where ids need it.
    """
    deep = labels.max(initial=0) > _MOST_16_BIT
    path = stem.with_name(f'{stem.name}.labels.{"tif" if deep else "png"}')
    Image.fromarray(labels.astype(np.int32 if deep else np.uint16)).save(
        path, **dict(compression='tiff_adobe_deflate') if deep else {})
    return path


def nuclei_list(labels: np.ndarray, types: np.ndarray | None = None,
                scores: Sequence[float] | None = None,
                names: Sequence[str] = ()) -> list[dict]:
    """The nuclei of a label map, by id.

    Args:
        labels: H x W, ids from 1 on without gaps, 0 background.
        types: H x W, the type of a nucleus (from 1 on) on all its pixels.
        scores: of nucleus 1, 2, ..., where there are any.
        names: of type 1, 2, ...

    Returns:
        per nucleus ``id``, ``centroid`` (x, y of the mean of its pixels, whose centres are
        whole numbers), ``area`` (pixels), and where they are known ``type`` and ``score``.
    """
    table = regionprops_table(labels, types, properties=(
        'label', 'centroid', 'area', *(['intensity_max'] if types is not None else [])))
    found = [dict(id=int(number), centroid=[round(float(x), 2), round(float(y), 2)],
                  area=int(area))
             for number, y, x, area in zip(table['label'], table['centroid-0'],
                                           table['centroid-1'], table['area'])]
    if types is not None:
        for entry, kind in zip(found, table['intensity_max']):
            entry['type'] = names[int(kind) - 1] if kind else None
    if scores is not None:
        for entry in found:
            entry['score'] = round(float(scores[entry['id'] - 1]), 6)
    return found
