"""Reading COCO and ADE20K with care: what a data set lacks is said in one line, before
training starts where the folders and annotations tell, else when the file is read.

Registered in mmengine's root registries, so mmdet and mmseg find the names as they are.
Files are expected on a local (or mounted) disk.
"""
from __future__ import annotations

import contextlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image

from backbones.errors import UserError
from histology import catalog
from histology.share import Shareable

from . import ops

ops.install()

from mmdet.datasets import CocoDataset  # noqa: E402
from mmdet.datasets.api_wrappers import COCO  # noqa: E402
from mmseg.datasets import ADE20KDataset  # noqa: E402
from mmseg.datasets.transforms import LoadAnnotations  # noqa: E402

_ELSEWHERE = '--data-root points to data elsewhere, --mini tries the run without data'
_AGAIN = 'copy or download it again'


def _require_folders(folders: Sequence[str], contents: str) -> None:
    """All of them exist; the first is the data root, which takes the contents."""
    for folder in folders:
        if not os.path.isdir(folder):
            raise UserError(f'data folder {folder} is missing; {folders[0]} must hold {contents}. '
                            f'{_ELSEWHERE}')


def _require_files(paths: Sequence[str], what: str) -> None:
    """All of them exist and are not empty; each folder is listed once."""
    sizes = {}
    for folder in {os.path.dirname(path) for path in paths}:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), \
                os.scandir(folder or '.') as entries:
            sizes.update((os.path.join(folder, entry.name), entry.stat().st_size)
                         for entry in entries if entry.is_file())
    for bad, verdict in (([path for path in paths if path not in sizes], 'missing'),
                         ([path for path in paths if not sizes.get(path)], 'empty (0 bytes)')):
        if bad:
            raise UserError(f'{len(bad)} of {len(paths)} {what} are {verdict}, the first is '
                            f'{bad[0]}; {_AGAIN}. {_ELSEWHERE}')


def _how_to_prepare(root: str) -> str:
    name = os.path.basename(os.path.normpath(root))
    return f' (tools/prepare_nuclei.py {name} makes them)' if name in catalog.DATASETS else ''


# COCO

_KEYS = dict(images=('id', 'file_name', 'height', 'width'), categories=('id', 'name'),
             annotations=('id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd'))


def _read_coco(path: str) -> dict:
    """The content of a COCO annotation file, which is known to be one afterwards."""
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f'cannot read annotation file {path}: {error.strerror}. '
                        f'{_ELSEWHERE}') from error
    except ValueError as error:
        raise UserError(f'{path} is truncated or no JSON ({error}); {_AGAIN}') from error
    lists = content if isinstance(content, dict) else {}
    if missing := [name for name in _KEYS if not isinstance(lists.get(name), list)]:
        raise UserError(f'{path} is not a COCO instance file: it lacks {", ".join(missing)}')
    for name, keys in _KEYS.items():
        for place, entry in enumerate(content[name]):
            for key in keys:
                if entry.get(key) is None:
                    raise UserError(f'{path}: entry {place} of {name} (id {entry.get("id")}) '
                                    f'lacks {key!r}; {_AGAIN}, or repair it')
    return content


@DATASETS.register_module()
class CocoInstances(Shareable, CocoDataset):
    """CocoDataset that names what is wrong with the data.

    While it is built: folders, annotation file, categories and image files are checked.
    For training, annotations that nothing can be learned from are left out, counted and
    logged; for testing none are. Crowds are ignored in training, as ever.

    Raises:
        UserError: anything a run cannot do without is absent or broken.
    """

    def load_data_list(self) -> list[dict]:
        root = self.data_root or os.path.dirname(self.ann_file)
        _require_folders([root], ' and '.join(
            os.path.relpath(path, root) for path in (self.ann_file, self.data_prefix['img']))
            + _how_to_prepare(root))
        self.skipped: Counter[str] = Counter()
        data_list = super().load_data_list()
        _require_files([info['img_path'] for info in data_list],
                       f'images of {os.path.basename(self.ann_file)}')
        if self.skipped:
            skipped = ', '.join(_number(count, what) for what, count in self.skipped.items())
            line = f'{os.path.basename(self.ann_file)}: skipped {skipped}'
            print_log(line, 'current')
            if is_main_process():
                print(line)
        return data_list

    def COCOAPI(self, path: str) -> COCO:
        """CocoDataset's hook: the annotation file, checked and indexed."""
        content = _read_coco(path)
        self._check_categories([category['name'] for category in content['categories']])
        coco = COCO()
        coco.dataset = content
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs
        for key, index in (('images', coco.imgs), ('annotations', coco.anns)):
            if len(index) < len(content[key]):
                raise UserError(f'{path}: {len(content[key]) - len(index)} of {len(content[key])} '
                                f'{key} repeat the id of another; make the ids unique')
        self._check_annotations(coco)
        return coco

    def _check_categories(self, found: Sequence[str]) -> None:
        classes = list(self.metainfo['classes'])
        if missing := [name for name in classes if name not in found]:
            more = f' and {len(missing) - 3} more' if len(missing) > 3 else ''
            raise UserError(f'{self.ann_file} lacks the categories {", ".join(missing[:3])}{more}; '
                            f'it has {", ".join(map(str, found[:5]))}{" ..." * (len(found) > 5)}. '
                            "Set the dataset's metainfo.classes to the categories of the file")
        # Labels are counted in the order of the file, by mmdet's dataset and metric alike.
        if (order := [name for name in found if name in classes]) != classes:
            raise UserError(f'{self.ann_file} lists its categories in another order than the '
                            f"config's classes: {', '.join(order[:5])} ...; order "
                            'metainfo.classes alike')

    def _check_annotations(self, coco: COCO) -> None:
        for number, annotation in coco.anns.items():
            if len(annotation['bbox']) != 4:
                raise UserError(f'{self.ann_file}: the bbox of annotation {number} is '
                                f'{annotation["bbox"]}, not x, y, width, height')
            # The evaluation drops nothing and stops, after hours, where it finds no mask.
            if self.test_mode and not isinstance(annotation.get('segmentation'), list | dict):
                raise UserError(f'{self.ann_file}: annotation {number} has no segmentation, so '
                                'masks cannot be evaluated; add it or remove the annotation')
            if not self.test_mode and annotation['image_id'] not in coco.imgs:
                self._skip('annotations of images that the file lacks')

    def parse_data_info(self, raw_data_info: dict) -> dict:
        if not self.test_mode:
            image = raw_data_info['raw_img_info']
            annotations = (self._usable(annotation, image['height'], image['width'])
                           for annotation in raw_data_info['raw_ann_info']
                           if annotation['category_id'] in self.cat2label)
            raw_data_info = dict(raw_img_info=image, raw_ann_info=[a for a in annotations if a])
        return super().parse_data_info(raw_data_info)

    def _usable(self, annotation: dict, height: int, width: int) -> dict | None:
        """The annotation, less the parts of its polygon that are not areas."""
        x, y, w, h = annotation['bbox']
        if w < 1 or h < 1 or annotation['area'] <= 0:
            return self._skip('boxes of zero size')
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            return self._skip('boxes outside the image')
        segmentation = annotation.get('segmentation')
        if isinstance(segmentation, dict):
            if segmentation.get('size') != [height, width] or not segmentation.get('counts'):
                return self._skip('masks of another size than the image')
            return annotation
        parts = [part for part in segmentation or ()
                 if len(part) >= 6 and len(part) % 2 == 0]
        if not parts:
            return self._skip('segmentations with fewer than 3 points')
        for _ in range(len(segmentation) - len(parts)):
            self._skip('parts of segmentations with fewer than 3 points')
        return {**annotation, 'segmentation': parts}

    def _skip(self, what: str) -> None:
        self.skipped[what] += 1

    def filter_data(self) -> list[dict]:
        kept = super().filter_data()
        if not kept:
            raise UserError(f'{self.ann_file} leaves no image to use: none of its '
                            f'{len(self.data_list)} images passes filter_cfg {self.filter_cfg}')
        return kept


def _number(count: int, things: str) -> str:
    if count == 1:
        noun, *rest = things.split(' ')
        things = ' '.join([{'boxes': 'box'}.get(noun, noun.removesuffix('s')), *rest])
    return f'{count} {things}'


# ADE20K

@DATASETS.register_module()
class AdeSegmentation(Shareable, ADE20KDataset):
    """ADE20KDataset that names what is wrong with the data; to be read by ``LoadLabels``.

    Classes that are all of ADE20K's select among its labels, as in mmseg; any other list
    names the labels of the files themselves (from 1 on; 0 is unlabelled).

    Raises:
        UserError: folders, images or label files are absent or empty.
    """

    @classmethod
    def get_label_map(cls, new_classes: Sequence[str] | None = None) -> dict | None:
        if new_classes and not set(new_classes) <= set(cls.METAINFO['classes']):
            return None
        return super().get_label_map(new_classes)

    def load_data_list(self) -> list[dict]:
        images, labels = (self.data_prefix.get(key) for key in ('img_path', 'seg_map_path'))
        _require_folders([folder for folder in (self.data_root, images, labels) if folder],
                         'images/{training,validation}/*.jpg and '
                         'annotations/{training,validation}/*.png')
        data_list = super().load_data_list()
        if not data_list:
            raise UserError(f'{images} holds no *{self.img_suffix}. {_ELSEWHERE}')
        _require_files([info['img_path'] for info in data_list], f'images of {images}')
        if labels:
            _require_files([info['seg_map_path'] for info in data_list],
                           f'label files of {labels}')
        for info in data_list:
            info['num_classes'] = len(self.metainfo['classes'])
        return data_list


@cache
def _label_table(moves: tuple[tuple[int, int], ...], reduce_zero_label: bool) -> np.ndarray:
    """Value in a label file -> class, 255 where ignored, -1 where there is no such class.
    The last entry stands for all values above 255."""
    table = np.full(257, -1, np.int16)
    for old, new in moves:
        table[old + reduce_zero_label] = new
    if reduce_zero_label:
        table[0] = 255
    table[255] = 255
    return table


@TRANSFORMS.register_module()
class LoadLabels(LoadAnnotations):
    """Semantic labels of an ``AdeSegmentation`` (its ``num_classes``, ``label_map`` and
    ``reduce_zero_label``): ``gt_seg_map``, H x W uint8, 255 where ignored. Does nothing
    where there is no label file, as in prediction.

    Raises:
        UserError: the file is absent or broken, not one value per pixel, of another size
            than its image, or has a value that stands for no class.
    """

    def transform(self, results: dict) -> dict:
        return super().transform(results) if 'seg_map_path' in results else results

    def _load_seg_map(self, results: dict) -> None:
        path = results['seg_map_path']
        content = _read(path)
        try:
            labels = mmcv.imfrombytes(content, flag='unchanged', backend='pillow')
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f'label file {path} is truncated or no image; {_AGAIN}') from error
        if labels.ndim != 2:
            raise UserError(f'label file {path} has {labels.shape[2]} channels; it must have '
                            'one value per pixel, the number of the class')
        if labels.shape != tuple(results['ori_shape']):
            raise UserError(f'label file {path} is {_size(labels.shape)}, its image '
                            f'{_size(results["ori_shape"])} pixels (height x width)')
        moves = results['label_map'] or {label: label for label in range(results['num_classes'])}
        table = _label_table(tuple(moves.items()), results['reduce_zero_label'])
        classes = table.take(labels, mode='clip')
        if (wrong := classes < 0).any():
            raise UserError(f'label file {path} has the value {labels[wrong].max()}, but there '
                            f'are {len(moves)} classes; set metainfo.classes to those of the data')
        results['gt_seg_map'] = classes.astype(np.uint8)
        results['seg_fields'].append('gt_seg_map')


# Pictures

_ENDS = ((b'\xff\xd8\xff', b'\xff\xd9'), (b'\x89PNG', b'IEND\xaeB`\x82'))


def _read(path: str) -> bytes:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}') from error
    if not content:
        raise UserError(f'{path} is empty (0 bytes); {_AGAIN}')
    return content


def _size(shape: Iterable[int]) -> str:
    return ' x '.join(map(str, shape))


def _truncated(content: bytes) -> bool:
    """Whether a JPEG or PNG breaks off. Some releases of OpenCV fill the rest with grey,
    Pillow refuses; it is asked only where the end marker is not at the end."""
    for start, end in _ENDS:
        if content.startswith(start) and not content.endswith(end):
            try:
                with Image.open(io.BytesIO(content)) as image:
                    image.load()
            except (OSError, SyntaxError, ValueError):
                return True
    return False


@TRANSFORMS.register_module()
class LoadImage(LoadImageFromFile):
    """An image file as H x W x 3 uint8, BGR, turned as its EXIF orientation says.

    Grey becomes three equal channels, a palette its colours, alpha is dropped, CMYK is
    converted, and 16 bits become 8 (v // 256; OpenCV rounds v / 257 for colour TIFFs,
    which differs by one at most).

    Args:
        to_float32: the same values as float32.

    Raises:
        UserError: the file is absent, empty, truncated or no image, or not of the size
            that the annotations say.
    """

    def __init__(self, to_float32: bool = False):
        super().__init__(to_float32=to_float32)

    def transform(self, results: dict) -> dict:
        path = results['img_path']
        content = _read(path)
        image = None if _truncated(content) else mmcv.imfrombytes(content, backend='cv2')
        if image is None:
            raise UserError(f'image {path} is truncated or of no known format; {_AGAIN}, or '
                            'convert it to JPEG or PNG')
        shape = image.shape[:2]
        expected = (results.get('height', shape[0]), results.get('width', shape[1]))
        if shape != expected:
            raise UserError(f'image {path} is {_size(shape)} pixels (height x width), its '
                            f'annotations say {_size(expected)}')
        results['img'] = image.astype(np.float32) if self.to_float32 else image
        results['img_shape'] = results['ori_shape'] = shape
        return results
