"""Synthetic H&E tiles with exact instance maps, as Kumar, CoNSeP and CPM-17 come.

Light through two stains (Beer-Lambert): optical densities of haematoxylin and eosin add
up, scaled by how much of each lies at a pixel. Fibrous eosinophilic stroma with gaps, and
on it nuclei of four looks, many of them touching or overlapping, some faint; blurred
shadows and red cells are nobody's nuclei. All ours, and only as real as learning needs.

Raw files lie in the folder ``source``, and beside it what ``histology.prepare`` makes of
them. They have the oddities of the real ones: RGBA images, ids as floats, with gaps.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from skimage.draw import polygon

from histology import catalog, formats
from histology.prepare import build

SIDE = 256
# Optical density of red, green and blue per unit of stain: haematoxylin of Ruifrok and
# Johnston, 2001; their eosin is magenta, that of Macenko et al., ISBI 2009, pink.
_HAEMATOXYLIN, _EOSIN = np.float32([0.65, 0.70, 0.29]), np.float32([0.22, 0.80, 0.56])
_GLASS = 244  # of 255: a slide with nothing on it
_LEAST_VISIBLE = 0.65  # share of a nucleus that is not covered, and covers no other
_LEAST_AREA = 40  # pixels


class Look(NamedTuple):
    """How nuclei of a kind look.

    Attributes:
        share: how common they are.
        numbers: types of CoNSeP that look so.
        diameter: least and greatest, in pixels.
        length: least and greatest ratio of the axes.
        wobble: how far the rim departs from an ellipse, relative to the radius.
        stain: least and greatest mean amount of haematoxylin.
        grain: contrast of the chromatin.
    """

    share: float
    numbers: tuple[int, ...]
    diameter: tuple[float, float]
    length: tuple[float, float]
    wobble: float
    stain: tuple[float, float]
    grain: float


_LOOKS = (
    Look(0.08, (1,), (16, 30), (1.0, 1.6), 0.14, (0.75, 1.25), 0.30),  # irregular
    Look(0.32, (2,), (14, 20), (1.0, 1.3), 0.04, (1.15, 1.50), 0.22),  # small, round, dark
    Look(0.35, (3, 4), (22, 34), (1.1, 1.6), 0.06, (0.60, 1.00), 0.45),  # large, pale, coarse
    Look(0.25, (5, 6, 7), (15, 22), (2.0, 3.2), 0.05, (0.85, 1.25), 0.25))  # spindles


def _noise(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    """Smooth noise of mean 0 and deviation 1 with blobs of about ``scale`` pixels: H x W."""
    coarse = [math.ceil(side / scale) + 2 for side in shape]
    field = rng.standard_normal(coarse, np.float32)
    field = cv2.resize(field, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return (field - field.mean()) / field.std()


def _fibres(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Wavy strands in one main direction, deviation about 1: H x W."""
    y, x = np.mgrid[:shape[0], :shape[1]].astype(np.float32)
    angle = rng.uniform(0, math.pi)
    bend = 14 * _noise(rng, shape, 90)
    along = x * math.cos(angle) + y * math.sin(angle) + bend
    across = y * math.cos(angle) - x * math.sin(angle) + bend
    side = sum(shape)
    strands = _noise(rng, (2 * side, side // 4), 4)
    fine = cv2.remap(strands, along / 9 + side // 8, across + side, cv2.INTER_LINEAR)
    broad = cv2.remap(strands, along / 30 + side // 8, across / 3 + side, cv2.INTER_LINEAR)
    return (fine + broad) / math.sqrt(2)


def _outline(rng: np.random.Generator, look: Look) -> np.ndarray:
    """Rim of a nucleus about the origin: 64 x 2, as y, x."""
    length = rng.uniform(*look.length)
    radius = rng.uniform(*look.diameter) / 2
    turn = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    rim = 1 + sum(look.wobble / order * rng.normal() * np.cos(order * turn + rng.uniform(0, 6.3))
                  for order in (2, 3, 4, 5))
    y = rim * radius * np.sin(turn) / math.sqrt(length)
    x = rim * radius * np.cos(turn) * math.sqrt(length)
    tilt = rng.uniform(0, math.pi)
    return np.stack([y * math.cos(tilt) + x * math.sin(tilt),
                     x * math.cos(tilt) - y * math.sin(tilt)], 1)


def _place(rng: np.random.Generator, shape: tuple[int, int], rims: list[np.ndarray],
           rim: np.ndarray) -> np.ndarray:
    """The rim moved to a place of its own, or against one that is there."""
    if rims and rng.random() < 0.55:
        other = rims[rng.integers(len(rims))]
        centre, angle = other.mean(0), rng.uniform(0, 2 * math.pi)
        way = np.array([math.sin(angle), math.cos(angle)])
        reach = ((other - centre) @ way).max() + (rim @ -way).max()
        return rim + centre + rng.uniform(0.80, 1.04) * reach * way
    return rim + rng.uniform((0, 0), shape)


def _nuclei(rng: np.random.Generator, shape: tuple[int, int]
            ) -> tuple[np.ndarray, list[Look], np.ndarray]:
    """Label map (H x W, later nuclei in front, ids 1..N), looks, and haematoxylin (H x W)."""
    density = rng.uniform(25, 45) / SIDE ** 2
    wanted = round(density * shape[0] * shape[1])
    labels, stain = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    rims, looks, areas = [], [], [0]
    share = [look.share for look in _LOOKS]
    for _ in range(8 * wanted):
        if len(looks) == wanted:
            break
        # One of each comes first, so that none is ever missing.
        look = _LOOKS[len(looks) if len(looks) < len(_LOOKS) else rng.choice(len(_LOOKS), p=share)]
        rim = _place(rng, shape, rims, _outline(rng, look))
        inside = polygon(*rim.T, shape)
        painted = _paint(labels, inside, areas)
        if painted is None:
            continue
        labels = painted
        corner = [axis.min() for axis in inside]
        mask = np.zeros([np.ptp(axis) + 1 for axis in inside], np.uint8)
        mask[tuple(axis - low for axis, low in zip(inside, corner))] = 1
        box = tuple(slice(low, low + side) for low, side in zip(corner, mask.shape))
        stain[box] += mask * _chromatin(rng, look, mask)
        rims, looks, areas = [*rims, rim], [*looks, look], [*areas, len(inside[0])]
    return labels, looks, stain


def _paint(labels: np.ndarray, inside: tuple[np.ndarray, np.ndarray],
           areas: list[int]) -> np.ndarray | None:
    """The label map with a nucleus more; None where it lies on, hides or cuts others too much.

    Args:
        areas: of the nuclei before anything covered them, from 1 on.
    """
    area, below = len(inside[0]), labels[inside]
    if area < _LEAST_AREA or np.count_nonzero(below == 0) < _LEAST_VISIBLE * area:
        return None
    painted = labels.copy()
    painted[inside] = len(areas)
    for other in np.unique(below[below > 0]):
        left = (painted == other).astype(np.uint8)
        if left.sum() < _LEAST_VISIBLE * areas[other] or cv2.connectedComponents(left)[0] > 2:
            return None
    return painted


def _chromatin(rng: np.random.Generator, look: Look, mask: np.ndarray) -> np.ndarray:
    """Haematoxylin in the box of a nucleus, of which ``mask`` is the inside: h x w.

    Denser along the membrane, clumped inside, and with a nucleolus or two where it is pale.
    """
    depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    clumps = _noise(rng, mask.shape, 3.5) + 0.5 * _noise(rng, mask.shape, 7)
    amount = rng.uniform(*look.stain) * (rng.uniform(0.5, 0.7) if rng.random() < 0.1 else 1)
    inside = 1 + look.grain * (0.6 * np.exp(-depth / 1.5) + 0.45 * clumps)
    if look.grain > 0.4:
        for _ in range(rng.integers(0, 3)):
            y, x = np.indices(mask.shape) - (rng.uniform(0.3, 0.7, 2) * mask.shape)[:, None, None]
            inside += 0.8 * np.exp(-(y ** 2 + x ** 2) / 5)
    return amount * np.clip(inside, 0.25, 2)


def _blobs(rng: np.random.Generator, shape: tuple[int, int], count: int,
           radius: tuple[float, float]) -> np.ndarray:
    """Discs of height 1: H x W."""
    field = np.zeros(shape, np.float32)
    for _ in range(count):
        y, x = rng.uniform((0, 0), shape)
        cv2.circle(field, (round(x * 16), round(y * 16)), round(rng.uniform(*radius) * 16), 1, -1,
                   cv2.LINE_8, 4)
    return field


def tile(rng: np.random.Generator, shape: tuple[int, int] = (SIDE, SIDE)
         ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one tile.

    Returns:
        image, H x W x 3 uint8, RGB; label map, H x W int32, 0 background and ids 1..N; and
        CoNSeP's number (1..7) of the type of each nucleus, N.
    """
    labels, looks, inside = _nuclei(rng, shape)
    nucleus = cv2.GaussianBlur((labels > 0).astype(np.float32), (0, 0), 0.7)
    cellular = _noise(rng, shape, 70)
    gaps = cv2.GaussianBlur((_noise(rng, shape, 28) - 0.4 * cellular > 1.2).astype(np.float32),
                            (0, 0), 1.5) * (1 - nucleus)
    red = cv2.GaussianBlur(_blobs(rng, shape, rng.integers(0, 5), (5, 7)), (0, 0), 1)
    shadows = cv2.GaussianBlur(_blobs(rng, shape, rng.integers(2, 6), (6, 11)), (0, 0), 4.5)
    eosin = np.clip(0.42 + 0.10 * _fibres(rng, shape) + 0.08 * cellular, 0.1, None)
    eosin = (eosin + 0.45 * red) * (1 - 0.9 * gaps) * (1 - 0.45 * nucleus)
    haematoxylin = np.clip(0.13 + 0.05 * cellular + 0.04 * _noise(rng, shape, 6), 0.02, None)
    haematoxylin = (haematoxylin + 0.30 * shadows) * (1 - 0.85 * gaps) + inside
    # Laboratories and sections differ in how much they stain.
    amounts = np.stack([haematoxylin, eosin], -1) * rng.uniform((0.85, 0.8), (1.1, 1.3))
    density = amounts.astype(np.float32) @ np.stack([_HAEMATOXYLIN, _EOSIN])
    light = cv2.GaussianBlur(_GLASS * np.exp(-density), (0, 0), rng.uniform(0.6, 0.9))
    light = light + rng.normal(0, 2.5, light.shape)
    types = np.array([rng.choice(look.numbers) for look in looks])
    return np.clip(light, 0, 255).astype(np.uint8), labels, types


class Layout(NamedTuple):
    """How a data set comes.

    Attributes:
        place: (split, 0 or 1; number, from 0 on) -> folder and name of an image.
        suffix: of images.
        sides: heights and widths of images, in turn.
        stored: type of the numbers in label maps.
    """

    place: Callable[[int, int], tuple[str, str]]
    suffix: str
    sides: tuple[int, ...]
    stored: type


def _kumar(split: int, number: int) -> tuple[str, str]:
    """Test images are of the same organs and of others in turn."""
    folder, names = 'train', catalog.KUMAR_TRAIN
    rank = number
    if split:
        folder, names = (('test_same', catalog.KUMAR_SAME),
                         ('test_diff', catalog.KUMAR_DIFFERENT))[number % 2]
        rank = number // 2
    invented = f'TCGA-00-{number:04d}-01Z-00-DX{split + 1}'
    return f'Kumar/{folder}', names[rank] if rank < len(names) else invented


def _consep(split: int, number: int) -> tuple[str, str]:
    return f'CoNSeP/{("Train", "Test")[split]}', f'{("train", "test")[split]}_{number + 1}'


def _cpm17(split: int, number: int) -> tuple[str, str]:
    return f'cpm17/{("train", "test")[split]}', f'image_{number:02d}'


LAYOUTS = {'kumar': Layout(_kumar, '.tif', (SIDE,), np.uint16),
           'consep': Layout(_consep, '.png', (SIDE,), np.float64),
           'cpm17': Layout(_cpm17, '.png', (250, 300), np.int32)}


def write(kind: str, folder: Path, seed: int, counts: tuple[int, int]) -> None:
    """Make the set of this kind: ``counts`` images to train and to test on.

    Every fourth image is RGBA in CoNSeP, and has gaps between its ids in Kumar.
    """
    layout = LAYOUTS[kind]
    for split, count in enumerate(counts):
        for number in range(count):
            rng = np.random.default_rng([seed, split, number, 2 + list(LAYOUTS).index(kind)])
            side = layout.sides[number % len(layout.sides)]
            image, labels, types = tile(rng, (side, side))
            image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
            if number % 4 == 3:
                image = cv2.cvtColor(image, cv2.COLOR_BGR2BGRA) if kind == 'consep' else image
                labels = 3 * labels if kind == 'kumar' else labels
            place, name = layout.place(split, number)
            raw = folder / 'source' / place
            for part in ('Images', 'Labels'):
                (raw / part).mkdir(parents=True, exist_ok=True)
            content = cv2.imencode(layout.suffix, image)[1].tobytes()
            (raw / 'Images' / f'{name}{layout.suffix}').write_bytes(content)
            formats.write_mat(raw / 'Labels' / f'{name}.mat', labels.astype(layout.stored),
                              types if kind == 'consep' else None)
    build(kind, folder / 'source', folder)
