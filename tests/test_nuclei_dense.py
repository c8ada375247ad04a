"""Dense nuclei models: their data, their protocols, and images of any size."""
from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample

from histology.errors import DataError
from suite import components, config  # noqa: F401

from histology.segmentor import _mirrored  # isort: skip

PROTOCOLS = 'upernet_kumar', 'upernet_consep', 'upernet_cpm17'


@pytest.fixture
def prepared(tmp_path) -> Path:
    """Two images of 40 x 50 pixels with two nuclei each, as prepare_nuclei.py leaves them."""
    root = tmp_path / 'kumar'
    labels = np.zeros((40, 50), np.uint16)
    labels[5:20, 5:20], labels[5:20, 22:40] = 1, 2
    for folder, content in (('images', np.full((40, 50, 3), 200, np.uint8)), ('labels', labels),
                            ('types', (labels + (labels > 0)).astype(np.uint8))):
        (root / folder / 'test').mkdir(parents=True)
        for name in 'ab':
            cv2.imwrite(str(root / folder / 'test' / f'{name}.png'), content)
    images = [dict(id=n, file_name=f'test/{name}.png', height=40, width=50, group=None)
              for n, name in enumerate('ab', 1)]
    (root / 'annotations').mkdir()
    (root / 'annotations/test.json').write_text(json.dumps(dict(images=images)))
    (root / 'prepared.json').write_text(json.dumps(dict(types=None)))
    return root


def read(root: Path, **settings):
    return DATASETS.build(dict(
        type='NucleiImages', data_root=f'{root}/', ann_file='annotations/test.json',
        test_mode=True, serialize_data=False, **settings))


# Data

def test_images_come_with_their_maps(prepared):
    entries = [read(prepared)[index] for index in range(2)]
    assert [Path(entry['img_path']).name for entry in entries] == ['a.png', 'b.png']
    for entry in entries:
        assert cv2.imread(entry['label_path'], cv2.IMREAD_UNCHANGED).max() == 2
        assert (entry['height'], entry['width'], entry['type_path']) == (40, 50, None)


def test_types_are_read_where_data_and_config_have_them(prepared):
    (prepared / 'prepared.json').write_text(json.dumps(dict(types=['x', 'y', 'z'])))
    assert read(prepared)[0]['type_path'] is None
    typed = read(prepared, metainfo=dict(classes=('x', 'y', 'z')))[0]
    assert cv2.imread(typed['type_path'], cv2.IMREAD_UNCHANGED).max() == 3
    with pytest.raises(DataError, match='has the types x, y, z, the config expects x, y; set'):
        read(prepared, metainfo=dict(classes=('x', 'y')))


def test_data_that_was_not_prepared_says_how_to_prepare_it(prepared, tmp_path):
    how = 'tools/prepare_nuclei.py cpm17 --source DIR'
    with pytest.raises(DataError, match=how) as raised:
        read(tmp_path / 'cpm17')
    assert '\n' not in str(raised.value)
    (prepared / 'labels/test/b.png').unlink()
    with pytest.raises(DataError, match='1 of 4 files of .*test.json are missing, .*/test/b.png'):
        read(prepared)
    (prepared / 'annotations/test.json').write_text('{"images": [')
    with pytest.raises(DataError, match='test.json is truncated or no JSON'):
        read(prepared)
    (prepared / 'annotations/test.json').write_text('{"images": []}')
    with pytest.raises(DataError, match='lists no image'):
        read(prepared)


# Protocols

@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_protocols_differ_by_data_and_types(protocol):
    cfg = config.load(protocol, backbone='swin_tiny')
    with config.scope(cfg), torch.device('meta'):
        model = MODELS.build(ConfigDict(cfg.model.to_dict()))
    types = dict(types=5) if protocol == 'upernet_consep' else {}
    assert model.decode_head.outputs == dict(nuclei=2, hv=2) | types
    assert list(model.decode_head.in_channels) == [96, 192, 384, 768]
    kind = protocol.removeprefix('upernet_')
    assert cfg.protocol == protocol
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert Path(loader.dataset.data_root).name == kind
    assert cfg.val_dataloader.dataset.ann_file == 'annotations/test.json'
    # Nothing is chosen on test images: one evaluation, and no best checkpoint.
    assert cfg.train_cfg.val_interval == cfg.train_cfg.max_iters == 16000
    assert cfg.default_hooks.checkpoint.best is None


@pytest.mark.parametrize('protocol, width, rate', [('upernet_kumar', 8, 1e-3),
                                                   ('upernet_consep', 16, 3e-3)])
def test_trials_look_through_the_protocol_s_windows(protocol, width, rate):
    full, mini = (config.load(protocol, backbone='swin_tiny', mini=mini) for mini in (False, True))
    assert full.model.test_cfg == mini.model.test_cfg == dict(window=512, overlap=64, batch=2)
    # Types want more width and larger steps, in the trial alone.
    assert (mini.model.decode_head.fine_channels, mini.optim_wrapper.optimizer.lr) == (width, rate)
    assert (full.model.decode_head.fine_channels, full.optim_wrapper.optimizer.lr) == (32, 1e-4)


def test_the_boundary_head_is_one_option_away():
    cfg = config.load('upernet_kumar', backbone='swin_tiny',
                      options={'model.decode_head.type': 'BoundaryHead'})
    with config.scope(cfg), torch.device('meta'):
        assert MODELS.build(cfg.model).decode_head.outputs == dict(classes=3)


# Images of any size

class Local(torch.nn.Module):
    """Stands for a network that looks 6 pixels around, and at the cells of a grid of 16."""

    outputs = dict(nuclei=2, hv=2)
    align_corners, num_classes, out_channels = False, 1, 1

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def maps(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        image = inputs[-1]
        self.seen.append(tuple(image.shape))
        near = F.avg_pool2d(image, 13, 1, 6, count_include_pad=False)
        cells = F.interpolate(F.avg_pool2d(image[:, :1], 16), scale_factor=16)
        return torch.cat([near[:, :2], cells, image[:, :1]], 1)

    def nuclei(self, maps: np.ndarray) -> tuple[np.ndarray, None]:
        return (maps[3] > 0.5).astype(np.int32), None


@pytest.fixture
def local():
    cfg = config.load('upernet_kumar', backbone='swin_tiny')
    with config.scope(cfg), torch.device('meta'):
        model = MODELS.build(cfg.model)
    model.backbone, model.decode_head = torch.nn.Identity(), Local()
    model.test_cfg = dict(window=64, overlap=16, batch=3)
    return model.eval()


@pytest.mark.parametrize('size', [(64, 64), (65, 200), (130, 97), (150, 64)])
def test_windows_give_what_one_piece_gives(local, size):
    image = torch.rand(3, *size)
    maps = local.maps(image)
    whole = image[:, _mirrored(size[0])][:, :, _mirrored(size[1])]
    piece = local.decode_head.maps([whole[None]])[0].numpy()
    assert np.array_equal(maps, piece[:, :size[0], :size[1]])
    assert np.array_equal(maps[3], image[0])
    *windows, _ = local.decode_head.seen
    assert {shape[2:] for shape in windows} == {(64, 64)}
    assert max(shape[0] for shape in windows) <= 3


def test_small_images_are_mirrored_to_the_grid_and_no_further(local):
    image = torch.rand(3, 20, 40)
    assert np.array_equal(local.maps(image)[3], image[0])
    assert local.decode_head.seen == [(1, 3, 32, 64)]
    local.test_cfg['window'] = 512
    assert local.maps(torch.rand(3, 70, 300)).shape == (4, 70, 300)
    assert local.decode_head.seen[1:] == [(1, 3, 96, 320)]
    assert _mirrored(3).tolist() == [0, 1, 2, 1] * 8
    assert _mirrored(40).tolist() == [*range(40), *range(38, 14, -1)]
    assert _mirrored(1).tolist() == [0] * 32


def test_predictions_are_label_maps_of_the_whole_image(local):
    images = torch.rand(2, 3, 100, 70)
    given = [SegDataSample(metainfo=dict(img_path=name)) for name in 'ab']
    samples = local.predict(images, given)
    assert [sample.img_path for sample in samples] == ['a', 'b']
    for image, sample in zip(images, samples):
        labels = sample.pred_nuclei.labels
        assert labels.dtype == torch.int32 and torch.equal(labels[0] > 0, image[0] > 0.5)
        assert 'types' not in sample.pred_nuclei
    assert local.predict(images)[1].pred_nuclei.labels.shape == (1, 100, 70)


# Runs

@pytest.mark.parametrize('protocol, options', [
    ('upernet_kumar', {}), ('upernet_consep', {}),
    ('upernet_consep', {'model.decode_head.type': 'BoundaryHead',
                        'model.decode_head.num_classes': 1})],
    ids=['hover', 'types', 'untyped boundary'])
def test_trains_and_scores_mini_data(tiny, tmp_path, protocol, options):
    from suite import run
    metrics = run.train(tiny(protocol, options), str(tmp_path))
    assert {f'nuclei/{name}' for name in ('dice', 'aji', 'aji_plus', 'dq', 'sq', 'pq')} <= set(
        metrics)
    assert all(0 <= value <= 1 for key, value in metrics.items() if key.endswith('/dice'))
    typed = protocol == 'upernet_consep' and not options
    assert ('nuclei/detection_f1' in metrics) is typed
    assert not (tmp_path / 'best.pth').exists()
