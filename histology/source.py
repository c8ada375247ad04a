"""Which files of a folder as distributed are which image of which split."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .catalog import DataSet, Part
from .errors import DataError

_IMAGES = ('.png', '.tif', '.tiff', '.bmp', '.jpg', '.jpeg')


class Item(NamedTuple):
    """One image and its label; one of the two files may be absent."""

    part: Part
    name: str
    image: Path | None
    label: Path | None


def find(data: DataSet, source: Path) -> tuple[list[Item], list[str]]:
    """All images of a data set in a folder, in the order of its parts and their names.

    Taken as HoVer-Net's authors lay it out, below the folder or one named after the data
    set, the split then being that of the folder. Else, where names tell the split, as
    MoNuSeg: outlines (.xml) with their images beside them or in ``Tissue Images``.

    Returns:
        the images; and a line on each deviation from what was published.

    Raises:
        DataError: none of both, a split without images, or two images of one name.
    """
    if not source.is_dir():
        raise DataError(f'no folder {source}; --source names the one that holds {data.title} as '
                        'distributed')
    items, deviations = _by_folder(data, source), []
    if not items and all(part.names for part in data.parts):
        items, deviations = _by_name(data, source)
    for split in ('train', 'test'):
        names = [item.name for item in items if item.part.split == split]
        if not names:
            raise DataError(f'{source} holds no {split} images of {data.title}; expected is '
                            f'{data.layout} (without --source: where it comes from)')
        if twice := [name for name in names if names.count(name) > 1]:
            raise DataError(f'{source}: two {split} images are named {twice[0]}; keep one')
    return items, [*deviations, *_deviations(data, items)]


def _by_folder(data: DataSet, source: Path) -> list[Item]:
    for root in (_child(source, data.folder), source):
        if root and any(_child(root, part.folder) for part in data.parts):
            return [item for part in data.parts if (folder := _child(root, part.folder))
                    for item in _pairs(part, folder)]
    return []


def _pairs(part: Part, folder: Path) -> Iterator[Item]:
    images = _files(_child(folder, 'Images'), _IMAGES)
    labels = _child(folder, 'Labels')
    labels = _files(labels, ('.xml',)) | _files(labels, ('.mat',))
    for name in sorted({*images, *labels}):
        yield Item(part, name, images.get(name), labels.get(name))


def _by_name(data: DataSet, source: Path) -> tuple[list[Item], list[str]]:
    folders = [source, *(path for path in sorted(source.rglob('*')) if path.is_dir())]
    images, labels = {}, {}
    for folder in folders:
        outlines = _files(folder, ('.xml',))
        _add(labels, outlines)
        if outlines or folder.name.casefold() == 'tissue images':
            _add(images, _files(folder, _IMAGES))
    items = [Item(part, name, images.get(name), labels.get(name)) for part in data.parts
             for name in sorted(part.names) if name in images or name in labels]
    other = sorted({*images, *labels} - {item.name for item in items})
    if not other:
        return items, []
    return items, [f"{len(other)} were left out, being none of {data.title}'s images, as the other "
                   f'test images of MoNuSeg ({listed(other)})']


def _add(files: dict[str, Path], more: dict[str, Path]) -> None:
    for name in more:
        if name in files:
            raise DataError(f'{files[name]} and {more[name]} have the same name; keep one')
    files.update(more)


def _child(folder: Path, name: str) -> Path | None:
    """The folder of this name, be it in upper or lower case; the exact name comes first."""
    found = [path for path in sorted(folder.iterdir())
             if path.name.casefold() == name.casefold() and path.is_dir()]
    return max(found, key=lambda path: path.name == name, default=None)


def _files(folder: Path | None, suffixes: Sequence[str]) -> dict[str, Path]:
    """Stem -> file; hidden ones are none."""
    found = {}
    for path in sorted(folder.iterdir()) if folder else ():
        if path.suffix.lower() in suffixes and path.name[0] != '.' and path.is_file():
            _add(found, {path.stem: path})
    return found


def _deviations(data: DataSet, items: Sequence[Item]) -> Iterator[str]:
    owner = {name: part for part in data.parts for name in part.names}
    for part in data.parts:
        names = [item.name for item in items if item.part is part]
        missing = [name for name in part.names if name not in names]
        strangers = [name for name in names if part.names and name not in owner]
        moved = [name for name in names if name in owner and owner[name] is not part]
        if missing:
            yield f'{part.folder} lacks {len(missing)} of {part.count} images ({listed(missing)})'
        elif not part.names and len(names) != part.count:
            yield f'{part.folder} holds {len(names)} images in place of {part.count}'
        if strangers:
            yield (f'{part.folder} holds {len(strangers)} under names that {data.title} does not '
                   f'have ({listed(strangers)})')
        for name in moved:
            yield f'{part.folder} holds {name}, which belongs to {owner[name].folder}'


def listed(names: Sequence[str]) -> str:
    """The first three names, and whether there are more."""
    return ', '.join(names[:3]) + ', ...' * (len(names) > 3)
