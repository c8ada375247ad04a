"""From a data set as distributed to what training and testing read.

Below DATA/kumar, DATA/consep or DATA/cpm17::

    prepared.json                          what it was made from, and what was odd about it
    images/{train,test}/NAME.png           8 bits, RGB
    labels/{train,test}/NAME.png           16 bits: ids 1..N, 0 background
    types/{train,test}/NAME.png            8 bits: type of the nucleus, 0 background
    tiles/NAME_yYYYY_xXXXX.png             256 x 256, every 128 pixels, of training images
    annotations/{train,test}.json          COCO, RLE, of whole images
    annotations/{fit,holdout}.json         the training images in two, to choose thresholds on
    annotations/{train,fit}_tiles.json     COCO, RLE, of tiles

Types are written where the data set has them: categories are then their names, else the
only one is 'nucleus'.
"""
from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from . import coco
from .catalog import DATASETS, DataSet
from .errors import DataError
from .formats import Annotation, dimensions, read_image, read_mat, read_xml
from .labels import encode, read_map
from .source import Item, find, listed

VERSION = 1  # of the layout
RECORD = 'prepared.json'


@dataclass
class _Image:
    """What is known of an image once it is written."""

    item: Item
    whole: coco.Picture
    tiles: list[coco.Picture]
    types: np.ndarray | None
    digest: str


def prepare(name: str, source: str | Path, out: str | Path, skip_bad: bool = False) -> dict:
    """Check a data set and write it to ``out/name``; an earlier version of it is replaced.

    Args:
        name: key of ``catalog.DATASETS``.
        source: folder with the data as distributed.
        skip_bad: leave out images that cannot be used, instead of stopping at the first.

    Returns:
        the content of ``prepared.json``: version, dataset, source, splits (of each images,
        nuclei, sizes), types (names, or None), deviations and skipped (lines).

    Raises:
        DataError: anything that cannot be used or written.
    """
    if name not in DATASETS:
        raise DataError(f'no data set {name!r}; there are {", ".join(DATASETS)}')
    source, folder = Path(source).resolve(), Path(out, name).resolve()
    if source.is_relative_to(folder):
        raise DataError(f'the source {source} lies in {folder}, which is to be written anew; move '
                        'it elsewhere')
    try:
        _refuse_foreign(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='.preparing-', dir=folder.parent) as aside:
            new = Path(aside, 'new')
            record = build(name, source, new, skip_bad)
            if folder.exists():
                os.rename(folder, Path(aside, 'old'))
            os.rename(new, folder)
    except OSError as error:
        raise DataError(f'cannot write {name} to {folder}: {error.strerror or error}; choose '
                        'another --out') from error
    return record


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not (folder / RECORD).is_file() and any(folder.iterdir()):
        raise DataError(f'{folder} holds something other than prepared data (no {RECORD}); '
                        'nothing was written there: choose another --out')


def build(name: str, source: Path, folder: Path, skip_bad: bool = False) -> dict:
    """As ``prepare``, but straight into ``folder``, half of it where something fails."""
    data = DATASETS[name]
    items, deviations = find(data, source)
    notes, images, skipped = defaultdict(list), [], []
    for part in ('images', 'labels'):
        for split in ('train', 'test'):
            (folder / part / split).mkdir(parents=True)
    (folder / 'tiles').mkdir()
    for item in tqdm(items, desc=f'preparing {name}', unit='image', disable=None, leave=False):
        try:
            pixels, annotation, odd = _read(data, item)
        except DataError as error:
            if not skip_bad:
                raise DataError(f'{error} (--skip-bad leaves such images out)') from error
            skipped.append(str(error))
            continue
        images.append(_write(folder, item, pixels, annotation))
        for what, where in odd.items():
            notes[what].append(f'{item.part.split}/{item.name}' + f' ({where})' * bool(where))
    for split in ('train', 'test'):
        if all(image.item.part.split != split for image in images):
            raise DataError(f'{source}: all {split} images are bad, the first: {skipped[0]}')
    deviations += [f'{what}: {len(where)} image{"s" * (len(where) > 1)} ({listed(where)})'
                   for what, where in notes.items()]
    deviations += [*_in_both(images), *_miscounted(data, images)]
    if complaint := _settle_types(data, images):
        deviations.append(complaint)
    types = list(data.types) if images[0].types is not None else None
    if types:
        _write_types(folder, images)
    _write_annotations(folder, images, data.holdout, types or ['nucleus'])
    record = dict(
        version=VERSION, dataset=name,
        source=str(source.relative_to(folder) if source.is_relative_to(folder) else source),
        splits={split: _summary(images, split) for split in ('train', 'test')}, types=types,
        deviations=deviations, skipped=skipped)
    (folder / RECORD).write_text(json.dumps(record, indent=1) + '\n')
    return record


def _read(data: DataSet, item: Item) -> tuple[np.ndarray, Annotation, dict[str, str]]:
    """Pixels, nuclei, and what is odd about them."""
    if item.label is None:
        raise DataError(f'image {item.image} has no label')
    if item.image is None:
        raise DataError(f'label {item.label} has no image')
    pixels, odd = read_image(item.image)
    shape = pixels.shape[:2]
    if item.label.suffix.lower() == '.xml':
        annotation = read_xml(item.label, shape)
    else:
        annotation = read_mat(item.label)
    if annotation.labels.shape != shape:
        raise DataError(f'label {item.label} is {dimensions(annotation.labels.shape)}, its image '
                        f'{dimensions(shape)} pixels (height x width)')
    least, most = data.sizes
    if not (least <= min(shape) and max(shape) <= most):
        expected = f'{least}' if least == most else f'{least} to {most}'
        odd[f'{dimensions(shape)} pixels, not {expected} a side'] = ''
    return pixels, annotation, odd | annotation.notes


def _write(folder: Path, item: Item, pixels: np.ndarray, annotation: Annotation) -> _Image:
    split, name, labels = item.part.split, item.name, annotation.labels
    # The rest of the world, OpenCV included, has blue first.
    pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _save(folder / 'images' / split / f'{name}.png', pixels)
    _save(folder / 'labels' / split / f'{name}.png', labels.astype(np.uint16))
    whole = coco.Picture(f'{split}/{name}.png', *labels.shape, item.part.group, encode(labels))
    tiles = []
    for place, nuclei in coco.tiles(labels) if split == 'train' else ():
        y, x = (axis.start for axis in place)
        tile = coco.Picture(f'{name}_y{y:04d}_x{x:04d}.png', *labels[place].shape, None, nuclei)
        _save(folder / 'tiles' / tile.file_name, pixels[place])
        tiles.append(tile)
    return _Image(item, whole, tiles, annotation.types, hashlib.sha256(pixels).hexdigest())


def _save(path: Path, pixels: np.ndarray) -> None:
    path.write_bytes(cv2.imencode('.png', pixels)[1].tobytes())


def _in_both(images: Sequence[_Image]) -> list[str]:
    train = {image.digest: image.item.name for image in images if image.item.part.split == 'train'}
    return [f'test image {image.item.name} is the training image {train[image.digest]} again'
            for image in images if image.item.part.split == 'test' and image.digest in train]


def _miscounted(data: DataSet, images: Sequence[_Image]) -> list[str]:
    nuclei = sum(len(image.whole.nuclei) for image in images)
    complete = len(images) == sum(part.count for part in data.parts)
    if not complete or nuclei == data.nuclei:
        return []
    return [f'{nuclei} nuclei in all; {data.nuclei} are commonly given']


def _settle_types(data: DataSet, images: Sequence[_Image]) -> str | None:
    """Merge the types of all images in place, or drop them; a line says why."""
    complaint = _why_untyped(data, [image.types for image in images]) if data.types else None
    for image in images:
        image.types = (np.array(data.merged)[image.types.astype(int)]
                       if data.types and not complaint else None)
    return f'types were left out: {complaint}' if complaint else None


def _why_untyped(data: DataSet, types: Sequence[np.ndarray | None]) -> str | None:
    found = [each for each in types if each is not None]
    if len(found) < len(types):
        return f'{len(types) - len(found)} labels have none'
    numbers, known = np.unique(np.concatenate(found)), np.flatnonzero(data.merged)
    theirs = f'{data.title}\'s ({known[0]} to {known[-1]})'
    if len(strange := np.setdiff1d(numbers, known)):
        return f'the number {strange[0]:g} is none of {theirs}'
    # All types are common: where some never occur, the numbers are another data set's.
    if {data.merged[int(number)] for number in numbers} < set(data.merged) - {0}:
        return (f'only the numbers {", ".join(f"{number:g}" for number in numbers)} occur, which '
                f'need not mean what {theirs} do')
    return None


def _write_types(folder: Path, images: Sequence[_Image]) -> None:
    for image in images:
        path = folder / 'types' / image.whole.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        labels = read_map(str(folder / 'labels' / image.whole.file_name))
        _save(path, np.concatenate([[0], image.types]).astype(np.uint8)[labels])


def _write_annotations(folder: Path, images: Sequence[_Image], holdout: Sequence[str],
                       categories: Sequence[str]) -> None:
    split = defaultdict(list)
    for image in images:
        split[image.item.part.split].append(image)
    train = sorted(split['train'], key=lambda image: image.item.name)
    held = [image for image in train if image.item.name in holdout]
    if not held and len(train) > 1:
        held = train[::6]
    fit = [image for image in train if image not in held]
    (folder / 'annotations').mkdir()
    for name, chosen in (('train', train), ('test', split['test']), ('fit', fit),
                         ('holdout', held)):
        coco.write(folder / f'annotations/{name}.json',
                   ((image.whole, image.types) for image in chosen), categories)
    for name, chosen in (('train', train), ('fit', fit)):
        coco.write(folder / f'annotations/{name}_tiles.json',
                   ((tile, image.types) for image in chosen for tile in image.tiles), categories)


def _summary(images: Sequence[_Image], split: str) -> dict:
    wholes = [image.whole for image in images if image.item.part.split == split]
    return dict(images=len(wholes), nuclei=sum(len(whole.nuclei) for whole in wholes),
                sizes=dict(Counter(dimensions((whole.height, whole.width)) for whole in wholes)))
