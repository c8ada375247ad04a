"""The parity tool: official figures agree, and whatever does not is named in one line."""
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backbones.dilateformer import DilateFormer
from backbones.swin import Swin
from suite import parity

FIGURES = Path(__file__).parent / 'data' / 'parity'
CASES = sorted(FIGURES.glob('*.json'))
DILATEFORMER = FIGURES / 'dilateformer__tiny__200x304.json'
SWIN = FIGURES / 'graft__host_swin_t__224x224.json'
TOOL = Path(__file__).parent.parent / 'tools' / 'parity.py'


@pytest.fixture
def edited(tmp_path):
    """Writes a copy of the Swin case with changes; returns its path."""
    def edit(change, name='edited.json'):
        case = json.loads(SWIN.read_text())
        change(case)
        path = tmp_path / name
        path.write_text(json.dumps(case))
        return path
    return edit


@pytest.fixture
def detuned(monkeypatch):
    """Makes one official tensor of Swin arrive changed."""
    def detune(name, change):
        monkeypatch.setattr(Swin, 'convert', staticmethod(
            lambda state, net: {n: change(t) if n == name else t for n, t in state.items()}))
    return detune


def line_of(path, tolerance=None):
    agrees, line = parity.check(path, tolerance)
    return line if not agrees else pytest.fail(f'agrees: {line}')


@pytest.mark.parametrize('path', CASES, ids=lambda path: path.stem)
def test_official_figures_agree(path):
    agrees, line = parity.check(path)
    assert agrees, line


def test_several_cases(capsys):
    assert parity.check_all([DILATEFORMER, SWIN])
    first, second, last = capsys.readouterr().out.splitlines()
    *words, error, _, _ = first.split()
    assert words == ['ok', 'dilateformer', 'tiny', '200x304'] and 0 < float(error) < 1e-5
    assert first.endswith('(tolerance 0.0001)')
    assert second.startswith('ok  graft (host) host_swin_t 224x224  ')
    assert last == '2 of 2 cases agree'


@pytest.mark.parametrize('model, variant, expected', [
    ('convnext', 'tiny', [1e-5] * 4),
    ('nextvit', 'small-depth2252', [1e-4, 1e-4, 1e-3, 1e-3]),
    ('spach', 'ms_hybrid_s_plus', [1e-4, 1e-4, 2e-4, 1e-4]),
    ('spach', 'ms_conv_xxs', [1e-4] * 4),
    ('swin', 'tiny', [1e-4] * 4),
])
def test_tolerances(model, variant, expected):
    case = parity.Case(model, variant, {}, {}, [{}] * 4)
    assert parity.tolerances(case) == expected


@pytest.mark.parametrize('name, shape, start', [
    ('bn.running_var', [4], (0.9484226107597351, 1.0061436891555786)),
    ('bn.running_mean', [4], (-0.22739823162555695, -0.07952895760536194)),
    ('norm.weight', [4], (1.1270229816436768, 1.0231693983078003)),
    ('fc.bias', [4], (-0.016416992992162704, 0.038693275302648544)),
    ('conv.weight', [4, 3, 3, 3], (0.12737134099006653, -0.19484631717205048)),
    ('Dense_0.kernel', [5, 7], (0.08228021115064621, 0.10229858756065369)),
    ('pos_embed', [1, 3, 2], (0.2716362178325653, 0.21537625789642334)),
    ('gamma', [4], (-0.09438677877187729, 0.034592125564813614)),
])
def test_weights_follow_the_rule(name, shape, start):
    """Figures of the script that made the cases."""
    weights = parity.fill(name, shape)
    assert list(weights.shape) == shape and weights.dtype == torch.float32
    assert weights.flatten()[:2].tolist() == pytest.approx(start, rel=1e-6)


def test_input_follows_the_rule():
    image = parity.image(33, 65, batch=2, seed=11)
    assert image.shape == (2, 3, 33, 65) and image.dtype == torch.float32
    assert image[1, 2, 32, [0, 64]].tolist() == pytest.approx(
        [-0.524986743927002, -0.8527979850769043], rel=1e-6)


@pytest.mark.parametrize('name, stage', [
    ('patch_embed.proj.weight', 1),
    ('layers.1.blocks.1.attn.relative_position_bias_table', 2),
    ('layers.1.downsample.reduction.weight', 3),
    ('norm3.bias', 4),
])
def test_a_perturbed_weight_is_found_in_its_stage(detuned, name, stage):
    detuned(name, lambda tensor: tensor * 1.1)
    line = line_of(SWIN)
    assert line.startswith(f'DIFFERS  graft (host) host_swin_t 224x224  stage {stage} first: 0.')
    assert line.endswith('(tolerance 0.0001)')


def test_tolerance(detuned):
    deviation = json.loads(SWIN.read_text())['outputs'][0]['std']
    detuned('norm0.bias', lambda tensor: tensor + 0.002 * deviation)
    assert 'stage 1 first: 0.002 (tolerance 0.0001)' in line_of(SWIN)
    agrees, line = parity.check(SWIN, 3e-3)
    assert agrees and float(line.split()[-3]) == pytest.approx(0.002)


def test_not_a_number_differs(detuned):
    detuned('norm2.weight', lambda tensor: tensor * float('nan'))
    assert 'stage 3 first: nan' in line_of(SWIN)


def test_mean_and_deviation_count(edited):
    for key in ('mean', 'std'):
        path = edited(lambda case, key=key: case['outputs'][1].update(
            {key: case['outputs'][1][key] * 1.01 + 0.01}))
        assert 'stage 2 first: 0.0' in line_of(path)


def test_other_shape_and_number_of_outputs(edited):
    path = edited(lambda case: case['outputs'][2].update(shape=[1, 384, 13, 14]))
    assert line_of(path).endswith('stage 3 first: shape 1x384x14x14, not 1x384x13x14')
    path = edited(lambda case: case['outputs'].pop())
    assert line_of(path).endswith('4 outputs, not 3')


def test_every_official_tensor_must_be_used(edited):
    path = edited(lambda case: case['state_dict'].update({
        'head.weight': [10, 768], 'norm.weight': [768]}))
    assert line_of(path).endswith('  official tensor without use: head.weight and 1 more')
    path = edited(lambda case: case['state_dict'].update({'layers.9.scale': [3]}))
    assert line_of(path).endswith('  official tensor without a place: layers.9.scale')


def test_every_tensor_of_ours_must_be_given(edited):
    path = edited(lambda case: case['state_dict'].pop('norm1.bias'))
    assert line_of(path).endswith('  not given by the case: norm1.bias')
    path = edited(lambda case: case['state_dict'].update({'norm1.bias': [96]}))
    assert line_of(path).endswith('  of another shape: norm1.bias (96, ours 192)')


def test_batch_norm_statistics_must_be_given(tmp_path):
    case = json.loads(DILATEFORMER.read_text())
    del case['state_dict']['patch_embed.proj.1.running_var']
    path = tmp_path / 'case.json'
    path.write_text(json.dumps(case))
    assert line_of(path).endswith('not given by the case: patch_embed.proj.1.running_var')


def test_resized_and_joined_tensors_count_as_used():
    net = Swin(dict(dim=24, depths=(1,), heads=(2,), window=12), out_indices=(0,))
    shapes = {name: list(tensor.shape) for name, tensor in net.state_dict().items()}
    table = 'layers.0.blocks.0.attn.relative_position_bias_table'
    parity.load(net, {**shapes, table: [13 ** 2, 2]})
    assert net.get_parameter(table).shape == (23 ** 2, 2)
    assert torch.equal(net.norm0.bias, parity.fill('norm0.bias', [24]))


@pytest.mark.parametrize('model, variant, name', [
    ('dilateformer', 'tiny', 'DilateFormer'), ('Dilate-Former', 'tiny', 'DilateFormer'),
    ('swin', 'small', 'Swin'), ('swin_vit', 'small', 'Swin'), ('resnet', 'resnet18', 'ResNet'),
    ('graft (host)', 'host_swin_t', 'Swin'), ('nothing', 'tiny', None),
    ('graft (host)', 'host_x', None)])
def test_whose_case_it_is(model, variant, name):
    cls = parity.system_of(parity.Case(model, variant, {}, {}, []))
    assert (cls.__name__ if cls else None) == name


def test_not_built_yet(edited):
    path = edited(lambda case: case.update(model='capsnet', variant='deep'))
    assert line_of(path) == 'not built yet  capsnet deep 224x224'
    path = edited(lambda case: case.update(variant='tinny', model='Swin'))
    line = line_of(path)
    assert line.startswith("not built yet  Swin tinny 224x224  Swin has no arch 'tinny'")
    assert 'did you mean tiny' in line


def test_a_crash_is_one_line(monkeypatch):
    def crash(self, x):
        raise RuntimeError('something broke\nat length')
    monkeypatch.setattr(DilateFormer, 'forward', crash)
    assert line_of(DILATEFORMER) == ('FAILS  dilateformer tiny 200x304  RuntimeError: '
                                     'something broke')


def test_no_case(tmp_path, edited):
    broken = tmp_path / 'broken.json'
    broken.write_text(SWIN.read_text()[:900])
    assert line_of(broken).startswith(f'no case  {broken}: not a json file (')
    other = tmp_path / 'other.json'
    other.write_text('{"model": "x", "cases": []}')
    assert line_of(other) == (f'no case  {other}: not a parity case, it has no variant, input, '
                              'state_dict, outputs')
    other.write_text('[]')
    assert 'not a parity case' in line_of(other)
    other.write_bytes(b'\xff\x00\x89')
    assert 'not a json file' in line_of(other)
    assert line_of(tmp_path / 'nowhere.json').endswith('nowhere.json: No such file or directory')
    assert 'Is a directory' in line_of(tmp_path)
    assert "not a parity case (KeyError: 'width')" in line_of(
        edited(lambda case: case['input'].pop('width')))


def test_exit_status_of_agreement(monkeypatch, capsys):
    monkeypatch.syspath_prepend(TOOL.parent)
    monkeypatch.setattr(sys, 'argv', ['parity.py', str(SWIN), '--tolerance', '1e-4'])
    main = runpy.run_path(str(TOOL))['main']
    assert main() == 0
    assert capsys.readouterr().out.endswith('\n1 of 1 cases agree\n')
    monkeypatch.setattr(sys, 'argv', ['parity.py', str(SWIN), '--tolerance', '1e-9'])
    assert main() == 1
    assert capsys.readouterr().out.endswith('\n0 of 1 cases agree\n')


def tool(*arguments):
    return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True,
                          text=True)


def test_several_files_on_the_command_line(tmp_path, edited):
    unbuilt = edited(lambda case: case.update(model='capsnet', variant='deep'), 'unbuilt.json')
    done = tool(tmp_path / 'nowhere.json', SWIN, unbuilt)
    assert done.returncode == 1 and not done.stderr
    starts = [line.split('  ')[0] for line in done.stdout.splitlines()]
    assert starts == ['no case', 'ok', 'not built yet', '1 of 3 cases agree']


def test_usage():
    done = tool('--help')
    assert done.returncode == 0 and len(done.stdout.splitlines()) < 20
    assert tool().returncode == 2
