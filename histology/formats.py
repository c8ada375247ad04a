"""Images and annotations of nuclei as the data sets distribute them.

Readers return what they found odd but could deal with as notes: what it was -> where in
the file ('' for all of it). What they cannot deal with is a ``DataError``.
"""
from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np
from PIL import Image
from scipy.io import loadmat, savemat
from skimage.draw import polygon

from .errors import DataError

MOST = 2 ** 16 - 1  # nuclei per image: a prepared instance map has 16 bits
_AGAIN = 'copy or download it again'


class Annotation(NamedTuple):
    """The nuclei of one image.

    Attributes:
        labels: H x W int32, 0 background, ids 1..N in the order of those in the file.
        types: N integers as in the file, or None.
        notes: see the module.
    """

    labels: np.ndarray
    types: np.ndarray | None
    notes: dict[str, str]


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f'cannot read {path}: {error.strerror}') from error
    if not content:
        raise DataError(f'{path} is empty (0 bytes); {_AGAIN}')
    return content


def read_image(path: str | Path) -> tuple[np.ndarray, dict[str, str]]:
    """A colour image and notes on it.

    Alpha is dropped. 16 bits become 8 (v // 256), where the values show that they fill
    them: 12 bits in a 16-bit file would come out black.

    Returns:
        H x W x 3 uint8, RGB; notes.

    Raises:
        DataError: absent, empty, truncated or no image; grey; or of another depth.
    """
    path = Path(path)
    content = _content(path)
    try:
        # Pillow notices what breaks off, without a word on stderr; OpenCV keeps all bits.
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with Image.open(io.BytesIO(content)) as image:
                image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f'image {path} is truncated or of no known format; {_AGAIN}') from error
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise DataError(f'image {path} is of a format that OpenCV does not read; convert it to '
                        'PNG')
    if pixels.ndim != 3:
        raise DataError(f'image {path} is grey; H&E images have red, green and blue')
    notes = {}
    if pixels.shape[2] == 4:
        notes['alpha channel, dropped'] = ''
    pixels = cv2.cvtColor(pixels[..., :3], cv2.COLOR_BGR2RGB)
    if pixels.dtype == np.uint16 and pixels.max() >= 2 ** 12:
        notes['16 bits per channel, reduced to 8'] = ''
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise DataError(f'image {path} has {pixels.dtype} values up to {pixels.max()}; convert it '
                        'to 8 bits per channel')
    return pixels, notes


def read_mat(path: str | Path) -> Annotation:
    """Annotations of HoVer-Net's authors: ``inst_map`` (H x W), with ``type_map`` (H x W) or
    ``inst_type`` (N, in the order of ids) where nuclei have types.

    A nucleus has the type of most of its pixels; ``inst_type`` is asked where there is no
    ``type_map``.

    Raises:
        DataError: no MATLAB file of version 5 to 7.2, no ``inst_map``, values that are no ids,
            more than 65535 nuclei, or types that do not fit the nuclei.
    """
    path = Path(path)
    content = io.BytesIO(_content(path))
    try:
        arrays = loadmat(content)
    except NotImplementedError as error:
        raise DataError(f'label {path} is a MATLAB 7.3 file; save it with -v7') from error
    except Exception as error:  # scipy raises whatever its parser stumbles upon
        raise DataError(f'label {path} is truncated or no MATLAB file; {_AGAIN}') from error
    if 'inst_map' not in arrays:
        found = ', '.join(sorted(name for name in arrays if not name.startswith('__')))
        raise DataError(f'label {path} lacks inst_map, the map of instances (it holds '
                        f'{found or "nothing"})')
    raw = arrays['inst_map']
    if raw.ndim != 2 or not raw.size or raw.dtype.kind not in 'biuf':
        raise DataError(f'label {path}: inst_map is {raw.dtype} of {dimensions(raw.shape)}; it '
                        'must have one id per pixel')
    ids, labels = np.unique(raw, return_inverse=True)
    wrong = ids[~((ids >= 0) & (ids == np.round(ids)) & np.isfinite(ids))]
    if len(wrong):
        raise DataError(f'label {path}: inst_map has the value {wrong[0]}; ids are whole numbers '
                        'from 1 on, 0 is background')
    labels = labels.reshape(raw.shape).astype(np.int32) + np.int32(ids[0] > 0)
    ids = ids[ids > 0]
    if len(ids) > MOST:
        raise DataError(f'label {path} has {len(ids)} nuclei; an instance map holds {MOST}')
    notes = _id_notes(ids)
    if raw.dtype.kind == 'f':
        notes['ids stored as floats'] = ''
    types = _types(path, arrays, labels, len(ids), notes)
    return Annotation(labels, types, notes)


def _id_notes(ids: np.ndarray) -> dict[str, str]:
    if not len(ids):
        return {'no nuclei': ''}
    notes = {}
    if ids[-1] > len(ids):
        notes['gaps between ids, renumbered'] = ''
    if ids[-1] > MOST:
        notes[f'ids above {MOST}, renumbered'] = f'up to {int(ids[-1])}'
    return notes


def _types(path: Path, arrays: dict, labels: np.ndarray, count: int,
           notes: dict[str, str]) -> np.ndarray | None:
    """Type of each of ``count`` nuclei; may add to the notes."""
    listed = arrays['inst_type'].ravel() if 'inst_type' in arrays else None
    if listed is not None and len(listed) != count:
        raise DataError(f'label {path}: inst_type lists {len(listed)} nuclei, inst_map has {count}')
    if 'type_map' not in arrays:
        return listed
    drawn = arrays['type_map']
    if drawn.shape != labels.shape:
        raise DataError(f'label {path}: type_map is {dimensions(drawn.shape)}, inst_map '
                        f'{dimensions(labels.shape)} pixels (height x width)')
    inside = labels > 0
    numbers, index = np.unique(drawn[inside], return_inverse=True)
    votes = np.zeros((count, len(numbers)), np.int64)
    np.add.at(votes, (labels[inside] - 1, index), 1)
    types = numbers[votes.argmax(1)] if count else numbers
    if (np.count_nonzero(votes, axis=1) > 1).any():
        notes['nuclei of more than one type, given that of most pixels'] = ''
    if listed is not None and not np.array_equal(types, listed):
        notes['inst_type contradicts type_map, which was taken'] = ''
    return types


def write_mat(path: str | Path, labels: np.ndarray, types: np.ndarray | None = None) -> None:
    """Write a label map as ``read_mat`` reads it; the same content gives the same bytes.

    Args:
        labels: H x W, 0 background; stored in its own type of number.
        types: of the nuclei, in the order of ids. With them the file gets ``type_map``,
            ``inst_type`` (N x 1) and ``inst_centroid`` (N x 2, as x, y), as CoNSeP's.
    """
    arrays = dict(inst_map=labels)
    if types is not None:
        ids, index = np.unique(labels, return_inverse=True)
        index = index.reshape(labels.shape)
        shift = int(ids[0] == 0)
        centres = [[axis.mean() for axis in np.nonzero(index == number)[::-1]]
                   for number in range(shift, len(ids))]
        of = np.concatenate([np.zeros(shift), types]).astype(np.float64)
        arrays |= dict(type_map=of[index], inst_type=of[shift:, None],
                       inst_centroid=np.array(centres, np.float64).reshape(-1, 2))
    file = io.BytesIO()
    savemat(file, arrays, do_compression=True)
    # The header is free text, into which scipy writes the time.
    text = b'MATLAB 5.0 MAT-file'.ljust(116)
    Path(path).write_bytes(text + file.getvalue()[len(text):])


def read_xml(path: str | Path, shape: tuple[int, int]) -> Annotation:
    """Outlines of Kumar and MoNuSeg: ``Region``s of ``Vertex`` with X and Y in pixels.

    The rule is ours, since every converter has its own: a pixel belongs to a region if its
    centre, at whole numbers, lies in the polygon of the unrounded vertices. Larger regions
    are painted first, so that none vanishes below a larger one; ids follow the file.
    Labels of HoVer-Net's authors differ along rims: compare results on theirs.

    Args:
        shape: height and width of the image, which cuts regions.

    Raises:
        DataError: no such XML, or a vertex without finite coordinates.
    """
    path = Path(path)
    try:
        root = ElementTree.fromstring(_content(path))
    except ElementTree.ParseError as error:
        raise DataError(f'label {path} is truncated or no XML ({error}); {_AGAIN}') from error
    if root.tag != 'Annotations':
        raise DataError(f'label {path} is no ImageScope annotation: its root is {root.tag!r}, not '
                        "'Annotations'")
    regions = [_outline(path, number, region)
               for number, region in enumerate(root.iter('Region'), 1)]
    short = [number for number, (y, _) in enumerate(regions, 1) if len(y) < 3]
    filled = [polygon(y, x, shape) if len(y) >= 3 else ((), ()) for y, x in regions]
    labels = np.zeros(shape, np.int32)
    for index in sorted(range(len(filled)), key=lambda index: -len(filled[index][0])):
        if len(filled[index][0]):
            labels[filled[index]] = index + 1
    ids, labels = np.unique(labels, return_inverse=True)
    labels = labels.reshape(shape).astype(np.int32) + np.int32(ids[0] > 0)
    hidden = sorted(set(range(1, len(regions) + 1)) - set(short) - set(ids.tolist()))
    found = np.count_nonzero(ids)
    if found > MOST:
        raise DataError(f'label {path} has {found} nuclei; an instance map holds {MOST}')
    notes = {} if found else {'no nuclei': ''}
    for what, numbers in (('regions of fewer than 3 points, left out', short),
                          ('regions without a pixel of their own, left out', hidden)):
        if numbers:
            notes[what] = 'region ' + ', '.join(map(str, numbers))
    return Annotation(labels, None, notes)


def _outline(path: Path, number: int, region: ElementTree.Element) -> tuple[list, list]:
    """The y and the x of a region's vertices."""
    try:
        points = [(float(vertex.attrib['Y']), float(vertex.attrib['X']))
                  for vertex in region.iter('Vertex')]
        if not all(math.isfinite(value) for point in points for value in point):
            raise ValueError
    except (KeyError, ValueError) as error:
        raise DataError(f'label {path}: region {number} has a vertex without X and Y; '
                        f'{_AGAIN}') from error
    return [y for y, _ in points], [x for _, x in points]


def dimensions(shape: Sequence[int]) -> str:
    """'1000 x 1000', as errors and records say it."""
    return ' x '.join(map(str, shape))
