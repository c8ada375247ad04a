"""Published figures are complete and sourced, and our networks are the published ones."""
from __future__ import annotations

import pytest

from backbones import UserError, available, describe, systems
from suite import published
from suite.agreement import HEADS, Figure, figures
from suite.complexity import Complexity, of_backbone
from suite.published import table
from suite.survey import Survey

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


WHOLE = ('swin_tiny', 'convnext_tiny', 'hornet_tiny_gf', 'moganet_small', 'nextvit_small',
         'visformer_swin_small_v2', 'mvitv2_tiny')


@pytest.mark.parametrize('name', WHOLE + tuple(
    pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS if name not in WHOLE))
def test_sizes_of_whole_models(name):
    """Parameters and MACs within 3 % of what was published of detectors and segmentors, too, or
    the reason is there; and it is there only where they are not."""
    found = list(figures(Survey(name)))
    assert [one for one in found if one.agrees == bool(one.reason)] == []
    if name in WHOLE:
        assert {one.head for one in found if one.agrees} >= {'classifier'}
        assert len({one.head for one in found if one.ours} & HEADS.keys()) >= 2


def test_a_difference_is_told_from_rounding():
    ours = Complexity(27_520_698, 4_489_798_656)
    one = Figure('swin_tiny', 'classifier', (224, 224), 28, 27.52, 4.5, ours, 'README', None)
    assert one.agrees and one.macs_by == pytest.approx(-0.00227, abs=1e-5)
    assert one._replace(macs=4.35).macs_by == pytest.approx(0.03214, abs=1e-5)
    assert not one._replace(macs=4.35).agrees
    # 0.9 may be 0.949.
    assert one._replace(macs=0.9, ours=Complexity(27_520_698, 945_000_000)).agrees
    assert not one._replace(official=26.6).agrees
    assert not one._replace(ours=None).agrees


def test_figures_of_a_network_that_is_not_ours_are_not_compared():
    theirs, = figures(Survey('cetnet_tiny'))
    assert theirs.reason == 'not of this network, which is our reconstruction'
    assert not list(figures(Survey('mrl_tiny'))) and not list(figures(Survey('timm/resnet18')))


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
    ('top1: 81.3, source: *cls', 'top1: 81.3, source: ""', "result 1: source must say where it st"),
    ('arch: tiny, head: cl', 'arch: tinny, head: cl', "result 1: there is no arch 'tinny'; did"),
    ('networks:', 'reconstruction: true\nnetworks:', 'swin.yaml: a reconstruction has no results'),
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


def test_reconstructions_have_no_results_and_say_so():
    ours = [name for name, cls in systems().items() if cls.reconstruction]
    assert ours == ['CETNet', 'GrafT', 'MRL', 'STT']
    assert not {result['family'] for result in published.results()} & set(ours)
    assert table.everything('cetnet') == 'CETNet: no results; ours is a reconstruction'
    assert table.summary(dict(STT='s25')).endswith('no public code | - | - | - | - | - |')


def test_results_of_all_systems_are_one_list():
    results = list(published.results())
    assert all(result['source'] and result['head'] and result['dataset'] for result in results)
    swin = [result for result in results if result['family'] == 'Swin']
    assert len(swin) == len(published.read('swin')['results'])
    # Of a classifier, the network's size and work count, unless it is of another image size.
    assert (swin[0]['parameters'], swin[0]['macs']) == (28, 4.5)
    convnext = [result for result in results if result['family'] == 'ConvNeXt'
                and (result['arch'], result.get('size')) == ('base', 384)]
    assert {result['macs'] for result in convnext} == {45.0, 47.0}
    hovernet = [result for result in results if result['arch'] == 'HoVer-Net']
    assert {result['dataset'] for result in hovernet} == {'Kumar', 'CoNSeP'}


def test_unknown_system():
    with pytest.raises(UserError, match="no published figures of 'Swinn'; did you mean swin"):
        published.read('Swinn')
