"""Whether windows find the nuclei that a network finds in the whole image at once."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import TRANSFORMS

from backbones.errors import UserError
from histology.metrics import overlaps

from .config import scope
from .mini_nuclei import tile
from .predict import build


class Agreement(NamedTuple):
    """Windows against one piece.

    Attributes:
        window, overlap: of ``test_cfg``, in pixels.
        whole, pieces: numbers of nuclei found in one piece and in windows.
        again: share of the former that the latter have with an IoU of 0.9 or more.
    """

    window: int
    overlap: int
    whole: int
    pieces: int
    again: float


def found_again(whole: np.ndarray, pieces: np.ndarray, least: float = 0.9) -> float:
    """Share of the nuclei of one label map, which has some, that another one has with an IoU of
    at least ``least`` (above 0.5: no nucleus counts twice)."""
    found = overlaps(whole, pieces)
    return float((found.shared >= least * found.union).sum() / len(found.true_areas))


def compare_windows(cfg: Config, checkpoint: str, side: int, margins: Sequence[int] = (),
                    seed: int = 0) -> Iterator[Agreement]:
    """Find the nuclei of a synthetic image in one piece, then in windows.

    Args:
        cfg: a nuclei protocol, from ``config.load``.
        checkpoint: file of a training run.
        side: height and width of the image in px, more than a window.
        margins: values for ``test_cfg.overlap``, in turn; none: the config's own.
        seed: of the image.

    Raises:
        UserError: the config is not for nuclei, the image is no larger than a window, or the
            network finds nothing in it.
    """
    settings = cfg.model.get('test_cfg', {})
    if 'window' not in settings:
        raise UserError(f'{cfg.filename} does not look at images in windows; name a config for '
                        'nuclei, e.g. configs/upernet_kumar.py')
    if side <= settings.window:
        raise UserError(f'an image of {side} px is one window of {settings.window} px; take a '
                        'larger --size')
    image, _, _ = tile(np.random.default_rng(seed), (side, side))
    image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    with scope(cfg):
        model = build(cfg, checkpoint)
        pack = Compose([TRANSFORMS.build(step) for step in cfg.test_dataloader.dataset.pipeline
                        if step.type != 'LoadImage'])

    def nuclei(window: int, overlap: int) -> np.ndarray:
        model.test_cfg.update(window=window, overlap=overlap)
        data = pack(dict(img=image.copy(), img_path='', img_shape=image.shape[:2],
                         ori_shape=image.shape[:2]))
        with torch.no_grad():
            sample, = model.test_step(pseudo_collate([data]))
        return sample.pred_nuclei.labels[0].numpy(force=True)

    window, own = settings.window, settings.overlap
    whole = nuclei(side, 0)
    if not whole.any():
        raise UserError(f'the network of {checkpoint} finds no nucleus in the synthetic image; '
                        'train it longer, on data as large as the mini data')
    for overlap in margins or (own,):
        pieces = nuclei(window, overlap)
        yield Agreement(window, overlap, int(whole.max()), int(pieces.max()),
                        found_again(whole, pieces))
