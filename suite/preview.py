"""A contact sheet of the mini data: pictures above, their annotations below."""
from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as codec

from backbones.errors import UserError

from . import mini

Marked = tuple[np.ndarray, list[tuple[np.ndarray, tuple[int, int, int], str]]]


def preview(root: str | Path, kinds: Sequence[str], file: str | Path) -> None:
    """Write a contact sheet: the first training pictures of each kind below ``root``, each
    above its annotation.

    Raises:
        UserError: the file cannot be written, or its ending is no picture format.
    """
    sheet = np.concatenate([_strip(Path(root) / kind) for kind in kinds])
    try:
        done = cv2.imwrite(str(file), sheet)
    except cv2.error:
        done = False
    if not done:
        raise UserError(f'cannot write the preview {file}; name a .png in a folder that exists')


def _coco(folder: Path, count: int) -> Iterator[Marked]:
    """The first pictures with their regions: mask, colour and a word on it."""
    content = json.loads((folder / 'annotations/instances_train2017.json').read_text())
    for image in content['images'][:count]:
        regions = []
        for annotation in content['annotations']:
            if annotation['image_id'] == image['id']:
                rle = codec.frPyObjects(annotation['segmentation'], mini.HEIGHT, mini.WIDTH)
                mask = codec.decode(rle if annotation['iscrowd'] else codec.merge(rle))
                category = mini.COCO_IDS.index(annotation['category_id'])
                regions.append((mask, mini.MINI_COCO_PALETTE[category],
                                'crowd' if annotation['iscrowd'] else ''))
        yield cv2.imread(str(folder / 'train2017' / image['file_name'])), regions


def _ade(folder: Path, count: int) -> Iterator[Marked]:
    folder = folder / 'ADEChallengeData2016'
    for path in sorted(folder.glob('images/training/*.jpg'))[:count]:
        labels = cv2.imread(str(folder / f'annotations/training/{path.stem}.png'), 0)
        yield cv2.imread(str(path)), [((labels == number).astype(np.uint8), colour, '')
                                      for number, colour in enumerate(mini.MINI_ADE_PALETTE, 1)]


def _nuclei(folder: Path, count: int) -> Iterator[Marked]:
    content = json.loads((folder / 'annotations/train.json').read_text())
    palette = mini.KINDS[folder.name].palette
    for image in content['images'][:count]:
        yield cv2.imread(str(folder / 'images' / image['file_name'])), [
            (codec.decode(nucleus['segmentation']), palette[nucleus['category_id'] - 1], '')
            for nucleus in content['annotations'] if nucleus['image_id'] == image['id']]


_READERS = dict(coco=_coco, ade=_ade, kumar=_nuclei, consep=_nuclei, cpm17=_nuclei)
_WIDTH = 400  # of a picture
_FILLED = ('coco', 'ade')  # a colour over the chromatin would hide what is to be seen


def _strip(folder: Path) -> np.ndarray:
    """One kind: a line of class names, a row of pictures, a row of annotations."""
    kind, rows = mini.KINDS[folder.name], ([], [])
    for image, regions in _READERS[folder.name](folder, 4):
        size = _WIDTH, round(_WIDTH * image.shape[0] / image.shape[1])
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
        marked = image.copy()
        for mask, rgb, text in regions:
            mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
            if folder.name in _FILLED:
                marked[mask > 0] = 0.45 * marked[mask > 0] + 0.55 * np.array(rgb[::-1])
            edges, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(marked, edges, -1, rgb[::-1], 2, cv2.LINE_AA)
            x, y, _, height = cv2.boundingRect(mask)
            _write(marked, text, x, y + height + 16, (255, 255, 255))
        for row, tile in zip(rows, (image, marked)):
            row.append(cv2.copyMakeBorder(tile, 4, 4, 4, 4, cv2.BORDER_CONSTANT,
                                          value=(255, 255, 255)))
    tiles = np.concatenate([np.concatenate(row, 1) for row in rows])
    title = np.full((40, tiles.shape[1], 3), 255, np.uint8)
    _write(title, folder.name, 6, 27, (60, 60, 60))
    for place, (name, rgb) in enumerate(zip(kind.classes, kind.palette)):
        cv2.circle(title, (100 + 160 * place, 21), 9, rgb[::-1], -1, cv2.LINE_AA)
        _write(title, name, 116 + 160 * place, 27, (60, 60, 60))
    return np.concatenate([title, tiles])


def _write(image: np.ndarray, text: str, x: int, y: int, colour: tuple[int, int, int]) -> None:
    cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.55, colour, 1, cv2.LINE_AA)
