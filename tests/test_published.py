"""Published figures are complete and sourced, and our networks are the published ones."""
from __future__ import annotations

import pytest

from backbones import UserError, available, describe, systems
from suite import published
from suite.complexity import of_backbone
from suite.published import table

NETWORKS = {name: describe(name) for name in available()}


def network(name: str) -> dict:
    settings = describe(name)
    return published.read(settings['type'])['networks'][settings['arch']]


@pytest.mark.parametrize('system', [name for name, cls in systems().items() if cls.archs])
def test_every_system_is_described(system):
    figures = published.read(system)
    assert figures['system'] == system
    assert figures['networks'].keys() == systems()[system].archs.keys()
    assert figures.get('reconstruction', False) == systems()[system].reconstruction
    assert {result['arch'] for result in figures['results']} <= figures['networks'].keys()


@pytest.mark.parametrize('name', NETWORKS)
def test_size_and_work(name):
    """Parameters within 1 % of the official network's, MACs within 3 % of the published ones,
    or, with the reason, of what was counted when the difference was explained."""
    official = network(name)
    side = official.get('size', 224)
    ours = of_backbone(name, (side, side))
    assert ours.parameters / 1e6 == pytest.approx(official['backbone'], rel=0.01)
    if 'differs' in official:
        assert ours.macs / 1e9 == pytest.approx(official['counted'], rel=0.005)
        assert official['macs'] != pytest.approx(official['counted'], rel=0.03)
    elif 'macs' in official:
        # Published figures are rounded, to 0.1 in most cases.
        rounding = 0.5 * 10. ** -len(str(float(official['macs'])).partition('.')[2])
        assert ours.macs / 1e9 == pytest.approx(official['macs'], rel=0.03, abs=rounding)


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Writes a changed copy of Swin's figures, and has ``published`` read it."""
    def write(old: str, new: str) -> None:
        text = (published.FOLDER / 'swin.yaml').read_text()
        assert old in text
        (tmp_path / 'swin.yaml').write_text(text.replace(old, new))
        monkeypatch.setattr(published, 'FOLDER', tmp_path)
    return write


@pytest.mark.parametrize('old, new, message', [
    ('top1: 81.3, source: *cls', 'top1: 81.3', 'swin.yaml: result 1: it lacks source'),
    ('top1: 81.3', 'topl: 81.3', "result 1: there is no 'topl'; did you mean top1"),
    ('top1: 81.3', 'top1: 813', 'result 1: metrics are in per cent'),
    ('top1: 81.3, ', '', 'result 1: it has no metric'),
    ('box: 43.7', 'box: high', "result 7: box must be a number, got 'high'"),
    ('macs: 8.7', 'macs: 8.7, differs: so', 'networks.small: counted and differs belong'),
    ('arxiv:', 'arxiv: [', 'swin.yaml: not yaml'),
])
def test_faults_are_named(broken, old, new, message):
    broken(old, new)
    with pytest.raises(UserError, match=message.replace('.', r'\.')):
        published.read('Swin')


def test_summary_takes_one_result_per_column():
    text = table.summary(dict(Swin='tiny', DilateFormer='small'))
    header, _, dilateformer, swin = text.splitlines()
    assert header.startswith('| system | source | top-1 | Mask R-CNN 1x | 3x |')
    assert swin == ('| Swin tiny | microsoft/Swin-Transformer | 81.3 | 43.7, 39.8 | 46.0, 41.6 | '
                    '50.4, 43.7 | 44.51, 45.81 |')
    assert dilateformer.endswith('| 83.3 | - | - | - | 47.1, 47.6 |')


def test_all_results_of_a_system():
    lines = table.everything('swin').splitlines()
    assert len(lines) == 2 + len(published.read('swin')['results'])
    assert '| large | classifier | ImageNet-1K | ImageNet-22K |' in lines[5]


def test_unknown_system():
    with pytest.raises(UserError, match="no published figures of 'Swinn'; did you mean swin"):
        published.read('Swinn')
