"""Windows against one piece, on a synthetic image: what is compared, and what is refused."""
from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, PixelData

from backbones.errors import UserError
from suite import config, nuclei_windows

AT_32 = dict(window=96, overlap=32)


def test_a_nucleus_is_found_again_from_nine_tenths_on():
    whole, pieces = np.zeros((2, 30, 40), np.int32)
    whole[:10, :10], whole[:10, 20:30], whole[20:, :10] = 1, 2, 7
    pieces[:9, :10], pieces[:10, 20:28], pieces[20:, 20:] = 4, 5, 6  # 90 %, 80 %, elsewhere
    assert nuclei_windows.found_again(whole, whole) == 1
    assert nuclei_windows.found_again(whole, pieces) == pytest.approx(1 / 3)
    assert nuclei_windows.found_again(whole, pieces, least=0.8) == pytest.approx(2 / 3)


class Dark:
    """In a network's place: dark parts are nuclei; windows with less than 32 pixels of
    context lose those at their left rim."""

    def __init__(self, darkness: int = 120):
        self.test_cfg, self.seen, self.darkness = dict(AT_32), [], darkness

    def test_step(self, data: dict) -> list[BaseDataElement]:
        settings = dict(self.test_cfg)
        self.seen.append(settings)
        dark = (data['inputs'][0][2].numpy() < self.darkness).astype(np.uint8)
        if settings['window'] < len(dark) and settings['overlap'] < 32:
            dark[:, :40] = 0
        _, labels = cv2.connectedComponents(dark)
        sample, = data['data_samples']
        sample.pred_nuclei = PixelData(labels=torch.from_numpy(labels)[None])
        return [sample]


@pytest.mark.parametrize('protocol', ['upernet_kumar', 'maskrcnn_kumar'])
def test_windows_are_compared_with_one_piece(monkeypatch, protocol):
    model = Dark()
    monkeypatch.setattr(nuclei_windows, 'build', lambda cfg, checkpoint: model)
    cfg = config.load(protocol, backbone='resnet18', options={
        f'model.test_cfg.{key}': value for key, value in AT_32.items()})
    own, = nuclei_windows.compare_windows(cfg, 'a.pth', 200)
    assert (own.window, own.overlap, own.again) == (96, 32, 1) and own.whole == own.pieces > 3
    less, more = nuclei_windows.compare_windows(cfg, 'a.pth', 200, (16, 40))
    assert more.again == 1 > less.again > 0 and less.pieces < less.whole == more.whole
    assert model.seen == [dict(window=200, overlap=0), AT_32, dict(window=200, overlap=0),
                          dict(window=96, overlap=16), dict(window=96, overlap=40)]


def test_what_cannot_be_compared_is_said(tool, monkeypatch):
    done = tool('bench_windows', 'configs/swin/upernet_ade20k.py', 'a.pth')
    assert done.complaint().endswith('does not look at images in windows; name a config for '
                                     'nuclei, e.g. configs/upernet_kumar.py')
    done = tool('bench_windows', 'configs/swin/upernet_kumar.py', 'a.pth', '--size', '512')
    assert done.complaint() == ('an image of 512 px is one window of 512 px; take a larger '
                                '--size')
    monkeypatch.setattr(nuclei_windows, 'build', lambda cfg, checkpoint: Dark(darkness=0))
    cfg = config.load('upernet_kumar', backbone='resnet18',
                      options={'model.test_cfg.window': 96, 'model.test_cfg.overlap': 32})
    with pytest.raises(UserError, match='of a.pth finds no nucleus in the synthetic image'):
        next(nuclei_windows.compare_windows(cfg, 'a.pth', 128))
