"""Small synthetic data sets with exact masks, in the layouts of COCO 2017 and ADE20K.

Circles, squares and triangles; each class has a shape and a range of hues of its
own, so that minutes are enough to learn from scratch. One folder per kind, each with
a marker ``mini.json`` that says which generator made it::

    ROOT/coco/annotations/instances_{train,val}2017.json
    ROOT/coco/{train,val}2017/000000000001.jpg
    ROOT/ade/ADEChallengeData2016/{images,annotations}/{training,validation}/ADE_*.{jpg,png}

And nuclei in H&E as kumar, consep and cpm17, see ``suite.mini_nuclei``.

A picture depends on the seed, its split and its number alone.
"""
from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from backbones.errors import UserError, closest
from histology.catalog import CONSEP_TYPES

from . import mini_nuclei

VERSION = 9  # of the pictures; raise it with every change to what is drawn
MARKER = 'mini.json'
HEIGHT, WIDTH = 160, 200

MINI_COCO_CLASSES = ('circle', 'square', 'triangle')
MINI_COCO_PALETTE = ((230, 75, 60), (60, 130, 230), (250, 190, 40))
MINI_ADE_CLASSES = ('sky', 'grass', *MINI_COCO_CLASSES)
MINI_ADE_PALETTE = ((150, 205, 240), (95, 165, 80), *MINI_COCO_PALETTE)
_NUCLEUS = (('nucleus',), ((60, 130, 230),))
_NUCLEI_PALETTE = ((250, 190, 40), (60, 130, 230), (95, 220, 80), (230, 75, 60))

COCO_IDS = (1, 2, 4)  # with a gap, as COCO's
_HUES = ((150, 166), (108, 124), (20, 32))  # OpenCV's, to 180: magenta, blue, yellow
_CONTRAST = 60  # least difference between a shape and what it lies on, in one channel
_LEAST_VISIBLE = 0.6  # share of a shape that later ones leave uncovered


@dataclass
class Shape:
    """A drawn shape, or a crowd of them.

    Attributes:
        category: index into MINI_COCO_CLASSES.
        cover: H x W uint8, 255 inside; the rim is antialiased.
        visible: H x W bool, the pixels that no later shape covers.
        area: number of pixels before anything covered it.
    """

    category: int
    crowd: bool
    cover: np.ndarray
    visible: np.ndarray
    area: int


def _draw(category: int, x: float, y: float, radius: float, tilt: float) -> np.ndarray:
    """Cover of one shape: H x W uint8."""
    corners = (64, 4, 3)[category]
    angles = tilt + 2 * math.pi * (np.arange(corners) + 0.5) / corners + math.pi / 2
    points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1)
    cover = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.fillPoly(cover, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return cover


def _single(rng: np.random.Generator) -> Shape:
    category = int(rng.integers(3))
    # Corners cost area; all classes are to be about as large.
    radius = math.exp(rng.uniform(math.log(13), math.log(36))) * (1, 1.25, 1.5)[category]
    x, y = (rng.uniform(0.6 * radius, side - 0.6 * radius) for side in (WIDTH, HEIGHT))
    cover = _draw(category, x, y, radius, rng.uniform(-0.4, 0.4))
    return _shape(category, False, cover)


def _crowd(rng: np.random.Generator) -> Shape:
    """Small shapes of one category, side by side, annotated as one region."""
    category = int(rng.integers(3))
    x, y = rng.uniform(15, WIDTH - 70), rng.uniform(15, HEIGHT - 45)
    cover = np.zeros((HEIGHT, WIDTH), np.uint8)
    for column in range(5):
        for row in range(3):
            dx, dy, tilt = rng.uniform(-1, 1, 3)
            one = _draw(category, x + 14 * column + 2 * dx, y + 14 * row + 2 * dy, 7, tilt)
            cover = np.maximum(cover, one)
    return _shape(category, True, cover)


def _shape(category: int, crowd: bool, cover: np.ndarray) -> Shape:
    visible = cover >= 128
    return Shape(category, crowd, cover, visible, int(visible.sum()))


def _has_hole(mask: np.ndarray) -> bool:
    _, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return bool((tree[0, :, 3] >= 0).any())


def _arrange(rng: np.random.Generator, crowd: bool) -> list[Shape]:
    """One to five shapes, later ones in front, all of them well in sight and free of
    holes, which COCO's polygons cannot express; and a crowd behind them, if asked for."""
    shapes = [_crowd(rng)] if crowd else []
    wanted = len(shapes) + int(rng.integers(1, 6))
    while len(shapes) < wanted:
        new = _single(rng)
        left = [shape.visible & ~new.visible for shape in shapes]
        if all(mask.sum() >= _LEAST_VISIBLE * shape.area and (shape.crowd or not _has_hole(mask))
               for shape, mask in zip(shapes, left)):
            for shape, mask in zip(shapes, left):
                shape.visible = mask
            shapes.append(new)
    return shapes


def _colour(rng: np.random.Generator, saturation: tuple[int, int],
            value: tuple[int, int], hue: tuple[int, int] = (0, 180)) -> np.ndarray:
    """Random BGR colour, float32; the ranges are OpenCV's: hue modulo 180, others to 255."""
    hsv = np.array([[[rng.integers(*hue) % 180, rng.integers(*saturation), rng.integers(*value)]]],
                   np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)


def _ramp(rng: np.random.Generator) -> np.ndarray:
    """H x W x 1, a linear change from about -1 to 1 in a random direction."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[-1:1:HEIGHT * 1j, -1:1:WIDTH * 1j].astype(np.float32)
    return (x * math.cos(angle) + y * math.sin(angle))[..., None]


def _paint(rng: np.random.Generator, ground: np.ndarray, shapes: Sequence[Shape]) -> np.ndarray:
    """The shapes in their colours on the ground, with grain: H x W x 3 uint8, BGR."""
    image = ground
    for shape in shapes:
        below = image[shape.cover >= 128].mean(0)
        colour = below
        while np.abs(colour - below).max() < _CONTRAST:
            colour = _colour(rng, (140, 256), (90, 256), _HUES[shape.category])
        colour = colour * (1 + 0.15 * _ramp(rng))
        alpha = shape.cover[..., None].astype(np.float32) / 255
        image = image + alpha * (colour - image)
    grain = rng.normal(0, 7, image.shape)
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def _clouds(rng: np.random.Generator) -> np.ndarray:
    """Blotches, about -1 to 1: H x W x 1."""
    coarse = rng.uniform(-1, 1, (6, 8)).astype(np.float32)
    return cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)[..., None]


def _outlines(mask: np.ndarray) -> Iterator[list[int]]:
    """Polygons x0 y0 x1 y1 ... along pixel edges, one per part of a mask without holes.

    Corners are whole numbers, of which pycocotools makes the same mask again.
    """
    count, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    for part in range(1, count):
        padded = np.pad(parts == part, 1).astype(np.int8)
        step = {}  # the way round, clockwise: where each pixel edge leads from a corner
        down, right = np.diff(padded, axis=0)[:, 1:-1], np.diff(padded, axis=1)[1:-1]
        for way, edges, sign, start in (((1, 0), down, 1, 0), ((-1, 0), down, -1, 1),
                                        ((0, 1), right, -1, 0), ((0, -1), right, 1, 1)):
            for y, x in np.argwhere(edges == sign).tolist():
                corner = (x + start, y) if way[1] == 0 else (x, y + start)
                step.setdefault(corner, []).append(way)
        corner = first = min(step)
        way, outline = (1, 0), []
        while step.get(corner):
            # Where two corners of the part touch, keep to the pixel we came along.
            turns = step[corner]
            new = (-way[1], way[0]) if (-way[1], way[0]) in turns else turns[0]
            turns.remove(new)
            if new != way or corner == first:
                outline.extend(corner)
            way = new
            corner = corner[0] + way[0], corner[1] + way[1]
        yield outline


def _runs(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed RLE: lengths of runs down the columns, zeros first."""
    flat = np.concatenate([[0], mask.T.ravel(), [0]]).astype(np.int8)
    ends = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], ends, [mask.size]])).tolist()


def _annotation(shape: Shape) -> dict:
    rows, columns = np.flatnonzero(shape.visible.any(1)), np.flatnonzero(shape.visible.any(0))
    left, top = int(columns[0]), int(rows[0])
    segmentation = (dict(counts=_runs(shape.visible), size=[HEIGHT, WIDTH]) if shape.crowd
                    else list(_outlines(shape.visible)))
    return dict(segmentation=segmentation, area=int(shape.visible.sum()),
                iscrowd=int(shape.crowd), category_id=COCO_IDS[shape.category],
                bbox=[left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top])


def _write_coco(folder: Path, seed: int, counts: tuple[int, int]) -> None:
    categories = [dict(supercategory='shape', id=number, name=name)
                  for number, name in zip(COCO_IDS, MINI_COCO_CLASSES)]
    (folder / 'annotations').mkdir(parents=True)
    for split, (name, first) in enumerate((('train2017', 1), ('val2017', 500001))):
        (folder / name).mkdir()
        images, annotations = [], []
        for index in range(counts[split]):
            rng = np.random.default_rng([seed, split, index])
            shapes = _arrange(rng, crowd=index % 16 == 1)
            ground = _colour(rng, (0, 90), (60, 200)) + 30 * _clouds(rng)
            image = dict(license=1, file_name=f'{first + index:012d}.jpg', height=HEIGHT,
                         width=WIDTH, id=first + index)
            _save(folder / name / image['file_name'], _paint(rng, ground, shapes))
            images.append(image)
            annotations += [_annotation(shape) | dict(image_id=image['id']) for shape in shapes]
        for number, annotation in enumerate(annotations, first):
            annotation['id'] = number
        (folder / 'annotations' / f'instances_{name}.json').write_text(json.dumps(dict(
            info=dict(description='DenseBench mini data', version=str(VERSION)),
            licenses=[dict(id=1, name='CC0 1.0',
                           url='https://creativecommons.org/publicdomain/zero/1.0/')],
            images=images, annotations=annotations, categories=categories)))


def _landscape(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pale sky over striped, dull grass. Returns the picture (H x W x 3) and its labels (H x W)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    horizon = rng.uniform(0.3, 0.7) * HEIGHT + 8 * np.sin(x / 25 + rng.uniform(0, 6))
    sky = _colour(rng, (5, 35), (150, 220), (90, 110)) + (0.3 * y)[..., None]
    slant, width = rng.uniform(-0.6, 0.6), rng.uniform(2.5, 4.5)
    stripes = np.sin((x + slant * y) / width)[..., None]
    grass = _colour(rng, (30, 90), (60, 120), (55, 75)) + 28 * stripes
    above = y < horizon
    return np.where(above[..., None], sky, grass) + 12 * _clouds(rng), np.where(above, 1, 2)


def _write_ade(folder: Path, seed: int, counts: tuple[int, int]) -> None:
    folder = folder / 'ADEChallengeData2016'
    for split, (name, short) in enumerate((('training', 'train'), ('validation', 'val'))):
        (folder / 'images' / name).mkdir(parents=True)
        (folder / 'annotations' / name).mkdir(parents=True)
        for index in range(counts[split]):
            rng = np.random.default_rng([seed, split, index, 1])
            shapes = _arrange(rng, crowd=False)
            ground, labels = _landscape(rng)
            for shape in shapes:
                if rng.random() < 0.5:  # annotators leave a seam now and then
                    labels[cv2.dilate(shape.cover, np.ones((5, 5))) > 0] = 0
                labels[shape.cover >= 128] = 3 + shape.category
            stem = f'ADE_{short}_{index + 1:08d}'
            _save(folder / 'images' / name / f'{stem}.jpg', _paint(rng, ground, shapes))
            _save(folder / 'annotations' / name / f'{stem}.png', labels.astype(np.uint8))


def _save(path: Path, image: np.ndarray) -> None:
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())


class Kind(NamedTuple):
    """One data set.

    Attributes:
        write: makes ``(folder, seed, (training, validation))``.
        images: usual number of training pictures; a quarter comes for validation.
        classes, palette: their names, and their colours (RGB) in pictures.
    """

    write: Callable[[Path, int, tuple[int, int]], None]
    images: int
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]


KINDS = {'coco': Kind(_write_coco, 200, MINI_COCO_CLASSES, MINI_COCO_PALETTE),
         'ade': Kind(_write_ade, 80, MINI_ADE_CLASSES, MINI_ADE_PALETTE),
         'kumar': Kind(partial(mini_nuclei.write, 'kumar'), 32, *_NUCLEUS),
         'consep': Kind(partial(mini_nuclei.write, 'consep'), 32, CONSEP_TYPES, _NUCLEI_PALETTE),
         'cpm17': Kind(partial(mini_nuclei.write, 'cpm17'), 32, *_NUCLEUS)}


def make_mini(root: str | Path, kinds: Sequence[str] = tuple(KINDS), seed: int = 0,
              images: int | None = None) -> None:
    """Make the sets of these kinds below ``root``; exactly these, where others stand.

    Args:
        seed: not negative; other seeds draw other pictures.
        images: training pictures of each kind; a quarter as many are added for
            validation. None: 200 for coco, 80 for ade, 32 of each kind of nuclei.

    Raises:
        UserError: a folder holds something else, or cannot be written.
    """
    if seed < 0 or (images is not None and images < 1):
        raise UserError(f'mini data needs a seed of at least 0 and at least 1 image, got seed '
                        f'{seed} and {images} images')
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f'no mini data of kind {kind!r}{closest(kind, KINDS)}')
        number = images or KINDS[kind].images
        wanted = dict(version=VERSION, kind=kind, seed=seed,
                      images=[number, max(1, number // 4)])
        folder = Path(root) / kind
        if not _matches(folder, wanted):
            _make(folder, wanted)


def ensure_mini(root: str | Path, kinds: Sequence[str] = tuple(KINDS)) -> None:
    """See to it that ``root`` holds complete sets of these kinds, whatever their seed and
    size; where one is absent, incomplete or of another version, make the usual one.

    Safe to call from several ranks and runs at once. Raises as ``make_mini``.
    """
    for kind in kinds:
        if not _matches(Path(root) / kind, dict(version=VERSION, kind=kind)):
            make_mini(root, [kind])


def _marker(folder: Path) -> dict | None:
    """What the marker says; None without a marker of ours."""
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) and 'version' in marker else None


def _matches(folder: Path, wanted: dict) -> bool:
    marker = _marker(folder)
    return (marker is not None and wanted.items() <= marker.items()
            and marker.get('files', 0) <= _count_files(folder))


def _count_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def _make(folder: Path, wanted: dict) -> None:
    """Build aside and move into place, so that nobody ever sees half a set."""
    start = time.perf_counter()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(folder)
        with tempfile.TemporaryDirectory(prefix='.making-', dir=folder.parent) as aside:
            new = Path(aside, 'new')
            KINDS[wanted['kind']].write(new, wanted['seed'], tuple(wanted['images']))
            marker = wanted | dict(files=_count_files(new) + 1)
            (new / MARKER).write_text(json.dumps(marker) + '\n')
            if not _put(new, folder, wanted, Path(aside, 'old')):
                return
    except OSError as error:
        raise UserError(f'cannot write mini data to {folder}: {error.strerror or error}; '
                        'choose another folder') from error
    train, val = wanted['images']
    print(f'mini {wanted["kind"]}: {train} + {val} images in {folder} '
          f'({time.perf_counter() - start:.1f} s)', flush=True)


def _refuse_foreign(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and _marker(folder) is None:
        raise UserError(f'{folder} holds something other than mini data (no {MARKER}); nothing '
                        'was written there: choose another folder')


def _put(new: Path, folder: Path, wanted: dict, old: Path) -> bool:
    """Move ``new`` to ``folder``; False where another process was faster."""
    if _matches(folder, wanted):
        return False
    if _marker(folder) is not None:
        with contextlib.suppress(FileNotFoundError):  # another process does the same
            os.rename(folder, old)
    try:
        os.rename(new, folder)
    except OSError:
        if _matches(folder, wanted):
            return False
        raise
    return True
