"""Command lines: help at once, configs printed, pictures predicted, mistakes in one line."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from suite import cli, config, mini
from suite.predict import pictures

TOOLS = config.ROOT / 'tools'
SIZE = 160, 200


# Arguments

@pytest.mark.parametrize('name', sorted(path.stem for path in TOOLS.glob('[!_]*.py')))
def test_help_fits_a_screen_and_imports_nothing_slow(name):
    code = (f"import sys, runpy; sys.argv = ['{name}', '--help']; sys.path.insert(0, '{TOOLS}')\n"
            f"try: runpy.run_path('{TOOLS / name}.py', run_name='__main__')\n"
            "except SystemExit as stop: assert not stop.code\n"
            "print(sorted({'torch', 'mmengine', 'cv2', 'numpy'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          env={'COLUMNS': '100'}, check=True)
    *shown, slow = done.stdout.splitlines()
    assert slow == '[]' and done.stderr == ''
    assert shown[0].startswith('usage: ') and len(shown) <= 45
    assert not [line for line in shown if len(line) > 100]


@pytest.mark.parametrize('text, value', [
    ('1', 1), ('1e-4', 1e-4), ('small', 'small'), ('True', True), ('false', False),
    ('none', None), ('(800, 1333)', (800, 1333)), ('8,11', (8, 11)), ('[8,11]', [8, 11]),
    ('a,b', ['a', 'b']), ("dict", 'dict'), ("{'type': 'SGD'}", {'type': 'SGD'}),
    ('data/x=y', 'data/x=y'), ('', '')])
def test_option_values(text, value):
    assert cli.Options.value(text) == value


def test_options_add_up():
    args = cli.parser('test')
    cli.add_config_arguments(args)
    given = args.parse_args(['c.py', '--cfg-options', 'a.b=1', 'c=x=y', '--cfg-options', 'a.b=2'])
    assert given.cfg_options == {'a.b': 2, 'c': 'x=y'}
    with pytest.raises(SystemExit) as stop:
        args.parse_args(['c.py', '--cfg-options', 'a.b'])
    assert stop.value.code == 2


# print_config

def test_print_config_prints_what_runs(tool, tmp_path):
    done = tool('print_config', 'configs/upernet_ade20k.py', '--backbone', 'resnet18', '--mini',
                '--data-root', tmp_path, '--cfg-options', 'train_cfg.max_iters=7')
    assert done.status == 0, done.err
    (tmp_path / 'printed.py').write_text(done.out)
    printed = Config.fromfile(tmp_path / 'printed.py')
    assert printed.model.decode_head.in_channels == [64, 128, 256, 512]
    assert printed.model.decode_head.num_classes == 5
    assert (printed.train_cfg.max_iters, printed.mini) == (7, True)
    assert printed.val_dataloader.dataset.data_root.startswith(f'{tmp_path}/ade/')


@pytest.mark.parametrize('arguments, words', [
    (('configs/swim/maskrcnn_coco.py',), 'did you mean configs/swin/maskrcnn_coco.py'),
    (('maskrcnn_coco',), '--backbone'),
    (('maskrcnn_coco', '--backbone', 'dilateformer_tinny'), 'did you mean dilateformer_tiny'),
    (('swin/cascade_coco', '--cfg-options', 'model.backbone.arch=huge'), "no arch 'huge'"),
    (('swin/cascade_coco', '--cfg-options', 'train_cfg.max_epoch=1'), 'did you mean max_epochs')])
def test_a_mistake_in_a_config_is_one_line(tool, arguments, words):
    assert words in tool('print_config', *arguments).complaint()


# predict

def save_all_kinds(folder: Path, picture: Path) -> None:
    """A picture in every kind of file that people have, and three broken ones."""
    folder.mkdir()
    image = Image.open(picture)
    image.save(folder / 'colour.jpg')
    image.convert('L').save(folder / 'grey.png')
    image.convert('CMYK').save(folder / 'cmyk.jpg')
    image.convert('RGBA').save(folder / 'alpha.PNG')
    deep = np.asarray(image)[..., ::-1].astype(np.uint16) * 257
    cv2.imwrite(str(folder / 'deep.tif'), deep)
    content = picture.read_bytes()
    (folder / 'broken.jpg').write_bytes(content[:len(content) // 2])
    (folder / 'empty.png').touch()
    (folder / 'words.bmp').write_text('no picture')
    (folder / 'notes.txt').write_text('not looked at')


GOOD = ['alpha.PNG', 'cmyk.jpg', 'colour.jpg', 'deep.tif', 'grey.png']


@pytest.fixture(scope='module')
def detected(trained, mini_root, tmp_path_factory) -> tuple[Path, Path, list]:
    """Source, results and error line of one prediction of all kinds of pictures."""
    folder = tmp_path_factory.mktemp('detected')
    save_all_kinds(folder / 'source', mini_root / 'coco/val2017/000000500001.jpg')
    return folder, trained('maskrcnn_coco')


def files(work_dir: Path) -> list[str]:
    """Config and checkpoint of a run."""
    return [str(next(work_dir.glob('*.py'))), (work_dir / 'last_checkpoint').read_text().strip()]


def test_predicts_a_folder_of_everything(tool, detected):
    folder, work_dir = detected
    done = tool('predict', *files(work_dir), folder / 'source', '--out', folder / 'out',
                '--score', '0.05')
    line = done.complaint()
    assert line.startswith('3 of 8 pictures could not be read: ') and 'broken.jpg' in line
    assert '5 of 8 pictures predicted' in done.out
    assert sorted(path.name for path in (folder / 'out').iterdir()) == [
        *sorted([*GOOD, 'predictions.json'])]
    entries = json.loads((folder / 'out/predictions.json').read_text())
    assert [entry['file'] for entry in entries] == GOOD
    for entry in entries:
        assert (entry['height'], entry['width']) == SIZE
        assert 0 < len(entry['instances']) <= 100
        scores = [found['score'] for found in entry['instances']]
        assert scores == sorted(scores, reverse=True) and 0.05 <= scores[-1] <= scores[0] <= 1
        for found in entry['instances']:
            x, y, width, height = found['bbox']
            assert found['category'] in mini.MINI_COCO_CLASSES
            assert min(x, y) >= 0 and x + width <= SIZE[1] + .01 and y + height <= SIZE[0] + .01
            mask = pycocotools.mask.decode(found['segmentation'])
            assert mask.shape == SIZE
            rows, columns = np.nonzero(mask)
            if len(rows):
                assert x - 1 <= columns.min() and columns.max() <= x + width + 1
                assert y - 1 <= rows.min() and rows.max() <= y + height + 1
    colour, deep = (next(e for e in entries if e['file'] == name)
                    for name in ('colour.jpg', 'deep.tif'))
    assert colour['instances'] and abs(len(colour['instances']) - len(deep['instances'])) < 20


def test_draws_what_it_writes(tool, detected):
    """At a score that nothing reaches, the picture is untouched and the list empty; else
    what is drawn lies where the instances are."""
    folder, work_dir = detected
    picture = folder / 'source/grey.png'
    none = tool('predict', *files(work_dir), picture, '--out', folder / 'none', '--score', '1')
    assert none.status == 0 and none.err == ''
    entry, = json.loads((folder / 'none/predictions.json').read_text())
    assert entry['instances'] == []
    before, drawn = (cv2.imread(str(path)).astype(int)
                     for path in (picture, folder / 'none/grey.png'))
    assert abs(drawn - before).max() <= 1

    every = tool('predict', *files(work_dir), picture, '--out', folder / 'some', '--score', '0.2')
    assert every.status == 0
    entry, = json.loads((folder / 'some/predictions.json').read_text())
    changed = abs(cv2.imread(str(folder / 'some/grey.png')).astype(int) - before).sum(-1) > 30
    masks = np.any([pycocotools.mask.decode(found['segmentation']) > 0
                    for found in entry['instances']], 0)
    assert changed[masks].mean() > 0.9


def test_predicts_a_file_whose_name_says_nothing(tool, detected):
    folder, work_dir = detected
    shutil.copy(folder / 'source/colour.jpg', folder / 'scan.0001')
    done = tool('predict', *files(work_dir), folder / 'scan.0001', '--out', folder / 'scan')
    assert done.status == 0, done.err
    assert (folder / 'scan/scan.0001.png').exists()


def test_predicts_label_maps(tool, trained, mini_root, tmp_path):
    work_dir = trained('upernet_ade20k')
    picture = mini_root / 'ade/ADEChallengeData2016/images/validation/ADE_val_00000001.jpg'
    done = tool('predict', *files(work_dir), picture, '--out', tmp_path)
    assert done.status == 0, done.err
    labels = cv2.imread(str(tmp_path / f'{picture.name}.labels.png'), cv2.IMREAD_UNCHANGED)
    assert labels.shape == SIZE and labels.dtype == np.uint8 and labels.max() < 5
    entry, = json.loads((tmp_path / 'predictions.json').read_text())
    assert entry['classes'] == {
        name: pytest.approx((labels == label).mean(), abs=1e-6)
        for label, name in enumerate(mini.MINI_ADE_CLASSES) if (labels == label).any()}
    assert sum(entry['classes'].values()) == pytest.approx(1, abs=1e-5)
    drawn, before = cv2.imread(str(tmp_path / picture.name)), cv2.imread(str(picture))
    assert drawn.shape == before.shape and (drawn != before).mean() > 0.5


def test_predict_refuses(tool, trained, detected, tmp_path):
    folder, work_dir = detected
    cfg, checkpoint = files(work_dir)
    picture = folder / 'source/colour.jpg'
    (tmp_path / 'empty').mkdir()
    for source, words in ((tmp_path / 'gone.jpg', 'no such picture'),
                          (tmp_path / 'empty', 'no pictures in')):
        assert words in tool('predict', cfg, checkpoint, source, '--out', tmp_path).complaint()
    same = tool('predict', cfg, checkpoint, picture, '--out', folder / 'source').complaint()
    assert 'would overwrite' in same and '--out' in same
    (tmp_path / 'file').touch()
    out = tool('predict', cfg, checkpoint, picture, '--out', tmp_path / 'file').complaint()
    assert 'not writable' in out

    (tmp_path / 'broken.pth').write_bytes(Path(checkpoint).read_bytes()[:5000])
    torch.save(dict(weights=1), tmp_path / 'other.pth')
    other = files(trained('upernet_ade20k'))[1]
    for path, words in ((tmp_path / 'gone.pth', 'not found'), (tmp_path / 'broken.pth', 'corrupt'),
                        (tmp_path / 'other.pth', 'no trained'), (other, 'does not fit')):
        assert words in tool('predict', cfg, path, picture, '--out', tmp_path / 'o').complaint()


def test_predict_refuses_other_classes(tool, detected, tmp_path):
    folder, work_dir = detected
    cfg, checkpoint = files(work_dir)
    line = tool('predict', cfg, checkpoint, folder / 'source/colour.jpg', '--out', tmp_path,
                '--cfg-options', 'model.roi_head.bbox_head.num_classes=4').complaint()
    assert 'other classes' in line and 'roi_head.bbox_head.fc_cls.weight' in line


def test_pictures_are_found_by_suffix_in_order(tmp_path):
    for name in ('b.JPG', 'a.tiff', 'c.txt', 'd.webp'):
        (tmp_path / name).touch()
    assert [path.name for path in pictures(tmp_path)] == ['a.tiff', 'b.JPG', 'd.webp']
    assert pictures(str(tmp_path / 'c.txt')) == [tmp_path / 'c.txt']
