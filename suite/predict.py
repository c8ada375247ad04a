"""Predictions for pictures that no data set knows: drawn, and as json."""
from __future__ import annotations

import json
from pathlib import Path

import mmcv
import numpy as np
import pycocotools.mask
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, TRANSFORMS, VISUALIZERS
from mmengine.structures import BaseDataElement
from torch import nn
from tqdm import tqdm

from backbones.checkpoint import load_report, read_checkpoint
from backbones.errors import UserError
from histology.export import nuclei_list, save_labels

from .config import classes_of, scope
from .draw import SCORE, draw
from .run import use_work_dir

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


def pictures(source: str | Path) -> list[Path]:
    """The picture at a path, or all pictures in a folder."""
    source = Path(source).expanduser()
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f'no such picture or folder: {source}')
    found = sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f'no pictures in {source} (looked for {", ".join(SUFFIXES)})')
    return found


def build(cfg: Config, checkpoint: str) -> nn.Module:
    """The trained model of a checkpoint, in eval mode."""
    weights = read_checkpoint(checkpoint).get('state_dict')
    if weights is None:
        raise UserError(f'{checkpoint} holds no trained detector or segmentor; name a checkpoint '
                        'of a training run')
    model = MODELS.build(cfg.model)
    print(load_report(model, weights, checkpoint, whole=True))
    return model.to('cuda' if torch.cuda.is_available() else 'cpu').eval()


def predict(cfg: Config, checkpoint: str, source: str, out: str,
            score: float | None = None) -> Path:
    """Predict every picture of ``source``.

    Args:
        cfg: from ``config.load``.
        checkpoint: file of a training run.
        source: a picture, or a folder of pictures.
        out: folder for the drawn pictures, ``predictions.json`` and, of a segmentor, label
            maps (``NAME.labels.png``, 8 bit, class index); of nuclei, their ids (16 bit;
            ``NAME.labels.tif``, 32 bit, where there are more than 65535).
        score: instances below it are left out; None: 0.3, of nuclei what ``test_cfg`` says.

    Returns:
        Path of ``predictions.json``: a list with one entry per picture: file, width,
        height, and ``instances`` (category, score, bbox [x, y, width, height] in pixels,
        segmentation as COCO RLE), ``classes`` (share of the pixels by class) or ``labels``
        (file of the label map) and ``nuclei`` (see ``histology.export.nuclei_list``).

    Raises:
        UserError: some pictures could not be read; the others were predicted.
    """
    found, folder = pictures(source), use_work_dir(out, '--out')
    if folder == found[0].parent.resolve():
        raise UserError(f'results would overwrite the pictures in {folder}; choose another --out')
    if score is not None and 'score' in cfg.model.test_cfg:
        cfg.model.test_cfg.score = score
    score = SCORE if score is None else score
    meta = classes_of(cfg.test_dataloader.dataset)
    steps = [step for step in cfg.test_dataloader.dataset.pipeline
             if step.type not in ('LoadAnnotations', 'LoadLabels')]
    with scope(cfg):
        model = build(cfg, checkpoint)
        pipeline = Compose([TRANSFORMS.build(step) for step in steps])
        visualizer = VISUALIZERS.build({**cfg.visualizer, 'name': 'predict',
                                        'vis_backends': None})
    visualizer.dataset_meta = meta
    entries, unread = [], []
    for number, path in enumerate(tqdm(found, desc='predicting', unit='picture', disable=None)):
        try:
            data = pipeline(dict(img_path=str(path), img_id=number))
        except UserError as error:
            unread.append(str(error))
            continue
        with torch.no_grad():
            sample = model.test_step(pseudo_collate([data]))[0].cpu()
        drawn = folder / (path.name if path.suffix.lower() in SUFFIXES else f'{path.name}.png')
        draw(visualizer, mmcv.imread(str(path), channel_order='rgb'), sample, drawn,
             truth=False, score=score)
        height, width = sample.ori_shape
        entries.append(dict(file=path.name, width=width, height=height,
                            **_found(sample, meta['classes'], score, folder / path.name)))
    result = folder / 'predictions.json'
    result.write_text(json.dumps(entries, indent=1) + '\n')
    print(f'{len(entries)} of {len(found)} pictures predicted: {folder}')
    if unread:
        raise UserError(f'{len(unread)} of {len(found)} pictures could not be read: {unread[0]}')
    return result


def _found(sample: BaseDataElement, classes: tuple[str, ...], score: float, path: Path) -> dict:
    if 'pred_nuclei' in sample:
        nuclei = sample.pred_nuclei
        labels = nuclei.labels[0].numpy()
        types = nuclei.types[0].numpy() if 'types' in nuclei else None
        return dict(labels=save_labels(labels, path).name,
                    nuclei=nuclei_list(labels, types, nuclei.get('scores'), classes))
    if 'pred_sem_seg' in sample:
        labels = sample.pred_sem_seg.data[0].numpy().astype(np.uint8)
        mmcv.imwrite(labels, f'{path}.labels.png')
        values, counts = np.unique(labels, return_counts=True)
        return dict(classes={classes[value]: round(count / labels.size, 6)
                             for value, count in zip(values.tolist(), counts.tolist())})
    found = sample.pred_instances
    found = found[found.scores >= score]
    return dict(instances=[
        dict(category=classes[label], score=round(certainty, 6),
             bbox=[round(x, 3) for x in (x1, y1, x2 - x1, y2 - y1)], segmentation=_rle(mask))
        for label, certainty, (x1, y1, x2, y2), mask in zip(
            found.labels.tolist(), found.scores.tolist(), found.bboxes.tolist(),
            found.masks.numpy())])


def _rle(mask: np.ndarray) -> dict:
    rle = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
    return dict(size=rle['size'], counts=rle['counts'].decode())
