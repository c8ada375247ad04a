"""What the README shows works as it stands there."""
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import backbones
from backbones.registry import _SYSTEMS, smallest
from suite.config import ROOT, configured_archs
from suite.leaderboard import text
from suite.leaderboard.ranking import boards
from suite.leaderboard.records import collect
from suite.published import table

README = (ROOT / 'README.md').read_text()


@pytest.fixture
def my_net(tmp_path, monkeypatch):
    """The worked example, as the one file that it is."""
    page = (ROOT / 'backbones' / 'README.md').read_text()
    code, = re.findall(r'```python\n(.*?)```', page, re.S)
    (tmp_path / 'mynet.py').write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    import mynet
    yield mynet.MyNet
    from mmengine.registry import MODELS
    _SYSTEMS.pop('MyNet')
    MODELS.module_dict.pop('MyNet')
    sys.modules.pop('mynet')


def test_the_example_keeps_the_contract(my_net):
    net = backbones.create('mynet_tiny')
    maps = net(torch.randn(2, 3, 97, 131))
    assert [m.shape[1] for m in maps] == list(net.out_channels) == [32, 64, 128, 256]
    assert all(m.is_contiguous() for m in maps)
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert net.layer_id('stem.weight') == 0
    assert net.layer_id('stages.2.blocks.1.0.weight') == 4 == net.num_layers - 1


def test_the_example_swaps_into_a_protocol(my_net):
    from suite.config import load
    cfg = load('configs/maskrcnn_coco.py', backbone='mynet_tiny', mini=True)
    assert cfg.model.neck.in_channels == [32, 64, 128, 256]
    assert cfg.model.rpn_head.anchor_generator.strides == [4, 8, 16, 32, 64]


def test_named_files_exist_and_the_page_is_short():
    for name in re.findall(r'(?:configs|tools|suite|tests|backbones)/[\w/]+\.(?:py|sh)', README):
        assert (ROOT / name).is_file() or name == 'backbones/mynet.py', name
    assert len(README.splitlines()) <= 250


def test_published_results_are_those_of_the_data():
    assert table.summary(configured_archs()) in README


def test_the_mini_matrix_is_that_of_its_records():
    records, left_out = collect([ROOT / 'results/mini'])
    assert text.overview(boards(records)) in README
    assert len(records) == 3 * len(smallest())
    # What the kills left behind.
    assert {record.reason for record in left_out} == {'not completed: still running, or killed'}


@pytest.mark.parametrize('tool', sorted(path.name for path in (ROOT / 'tools').glob('[a-z]*.py')))
def test_every_tool_explains_itself_on_one_screen(tool):
    done = subprocess.run([sys.executable, Path(ROOT, 'tools', tool), '--help'],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= 40
