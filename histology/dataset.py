"""Whole images of a prepared data set with their instance maps."""
from __future__ import annotations

import json
from pathlib import Path

from mmengine.registry import DATASETS

from .errors import DataError
from .share import Shareable


@DATASETS.register_module()
class NucleiImages(Shareable):
    """The images of one split, as ``tools/prepare_nuclei.py`` laid them out.

    Each entry has ``img_path``, ``label_path`` (16-bit instance map), ``type_path`` (8-bit
    types, or None), ``group`` (or None), ``img_id``, ``height`` and ``width``. Classes are
    ``('nucleus',)``, or the types of nuclei.

    Args:
        ann_file: ``annotations/SPLIT.json``, of which the list of images is used.
        kwargs: of ``Shareable`` and mmengine's ``BaseDataset``.

    Raises:
        DataError: the data was not prepared, a file is absent, or its types are other than
            the config's classes.
    """

    METAINFO = dict(classes=('nucleus',), palette=[(60, 130, 230)])

    def load_data_list(self) -> list[dict]:
        self.root = Path(self.data_root)
        types = self._check_types(self._read(self.root / 'prepared.json').get('types'))
        images = self._read(Path(self.ann_file))['images']
        if not images:
            raise DataError(f'{self.ann_file} lists no image. {self._prepare()}')
        entries = [self._entry(image, types) for image in images]
        needed = [entry[key] for key in ('img_path', 'label_path', 'type_path')
                  for entry in entries if entry[key]]
        if missing := [path for path in needed if not Path(path).is_file()]:
            raise DataError(f'{len(missing)} of {len(needed)} files of {self.ann_file} are '
                            f'missing, the first is {missing[0]}. {self._prepare()}')
        return entries

    def _entry(self, image: dict, types: bool) -> dict:
        name = Path(image['file_name'])
        labels = name.with_suffix('.png')
        return dict(img_path=str(self.root / 'images' / name),
                    label_path=str(self.root / 'labels' / labels),
                    type_path=str(self.root / 'types' / labels) if types else None,
                    group=image.get('group'), img_id=image['id'], height=image['height'],
                    width=image['width'])

    def _check_types(self, found: list[str] | None) -> bool:
        """Whether there are types to be read; untyped data serves every model."""
        classes = list(self.metainfo['classes'])
        if found and len(classes) > 1 and found != classes:
            raise DataError(f'{self.root} has the types {", ".join(found)}, the config expects '
                            f'{", ".join(classes)}; set metainfo.classes of the data sets to the '
                            'former')
        return bool(found) and len(classes) > 1

    def _read(self, path: Path) -> dict:
        try:
            return json.loads(path.read_bytes())
        except OSError as error:
            raise DataError(f'cannot read {path} ({error.strerror}). {self._prepare()}') from error
        except ValueError as error:
            raise DataError(f'{path} is truncated or no JSON. {self._prepare()}') from error

    def _prepare(self) -> str:
        name = self.root.name
        return (f'Make the data with tools/prepare_nuclei.py {name} --source DIR --out '
                f'{self.root.parent}; without --source it says where {name} comes from. '
                '--mini tries the run without data')
