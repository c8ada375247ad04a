"""Nuclei from the command line: a trained detector, pictures in, contours, label maps and a
list of nuclei out."""
from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.utils import ManagerMixin

from suite import config, run
from tests.conftest import TINY, forget
from tests.slides import slide


@pytest.fixture(scope='module')
def detector(tmp_path_factory) -> tuple[list[str], Path]:
    """Config and checkpoint of a detector of types after two iterations, and its work dir."""
    forget(ManagerMixin)
    root = tmp_path_factory.mktemp('nuclei')
    from suite.mini import make_mini
    make_mini(root / 'data', ['consep'], images=4)
    cfg = config.load('maskrcnn_consep', backbone='dilateformer_tiny', mini=True,
                      data_root=str(root / 'data'), options={
                          'model.backbone.arch': TINY, 'train_cfg.max_iters': 2,
                          'train_cfg.val_interval': 2, 'param_scheduler': [],
                          'train_dataloader.dataset.indices': 2,
                          'model.test_cfg.rcnn.score_thr': 0., 'model.test_cfg.score': 0.,
                          'model.test_cfg.rcnn.max_per_img': 60,
                          'model.test_cfg.window': 160, 'model.test_cfg.overlap': 32})
    metrics = run.train(cfg, str(root / 'run'))
    assert {'nuclei/aji', 'coco/segm_mAP', 'coco/bbox_mAP'} <= set(metrics)
    files = [str(next((root / 'run').glob('*.py'))), str(root / 'run/iter_2.pth')]
    return files, root


def test_validation_draws_truth_beside_prediction(detector):
    _, root = detector
    drawn, = (root / 'run').glob('predictions/iter_2/*.jpg')
    assert cv2.imread(str(drawn)).shape == (512, 2 * 512 + 6, 3)


def test_predicts_pictures_of_any_size(tool, detector, tmp_path):
    files, _ = detector
    source = tmp_path / 'source'
    source.mkdir()
    for name, size in (('wide.tif', (150, 530)), ('tile.png', (96, 96))):
        cv2.imwrite(str(source / name), slide(*size)[0])
    done = tool('predict', *files, source, '--out', tmp_path / 'out')
    assert done.status == 0, done.err
    entries = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert [entry['file'] for entry in entries] == ['tile.png', 'wide.tif']
    for entry, drawn in zip(entries, [(576, 576, 3), (600, 2120, 3)]):
        labels = cv2.imread(str(tmp_path / 'out' / entry['labels']), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint16
        assert labels.shape == (entry['height'], entry['width'])
        assert [nucleus['id'] for nucleus in entry['nuclei']] == list(range(1, labels.max() + 1))
        for nucleus in entry['nuclei']:
            rows, columns = np.nonzero(labels == nucleus['id'])
            assert nucleus['area'] == len(rows) >= 10
            assert nucleus['centroid'] == pytest.approx([columns.mean(), rows.mean()], abs=0.01)
            assert nucleus['type'] in ('miscellaneous', 'inflammatory', 'epithelial',
                                       'spindle-shaped') and 0 <= nucleus['score'] <= 1
        assert cv2.imread(str(tmp_path / 'out' / entry['file'])).shape == drawn
    assert len(entries[1]['nuclei']) > 0


def test_score_decides_what_is_a_nucleus(tool, detector, tmp_path):
    files, _ = detector
    cv2.imwrite(str(tmp_path / 'a.png'), slide(128, 200)[0])
    counts = []
    for score in ('0', '1'):
        done = tool('predict', *files, tmp_path / 'a.png', '--out', tmp_path / 'out',
                    '--score', score)
        assert done.status == 0, done.err
        entry, = json.loads((tmp_path / 'out/predictions.json').read_text())
        counts.append(len(entry['nuclei']))
    assert counts[0] > 0 and counts[1] == 0
