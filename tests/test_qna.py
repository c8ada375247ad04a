"""QnA: the layer by official figures and by the textbook, masks, names and layouts."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from backbones import create, qna
from backbones.layers import relative_position_bias
from backbones.qna import QnA, QueryAndAttend, query_and_attend
from suite import parity
from suite.attention import case, compare
from suite.attention.qna import unfold_attention

LAYERS = json.loads((Path(__file__).parent / 'data' / 'qna_layer.json').read_text())['cases']
LAYER = 'QnAStage_0.QnA_Block_1.FusedKQnA_0.'
SMALL = dict(dim=32, depths=(1, 1, 2, 1), local=(0, 0, 1, 1), windows=(7, 7, 4, 3),
             local_head_dim=16, head_dim=8, queries=2, kernel=3)


def waves(height, width, batch, channels, seed):
    """``parity.image`` with more channels."""
    random = np.random.RandomState(seed)
    drawn = random.uniform((0.5, 0.5, 0), (6, 6, 2 * np.pi), (batch, channels, 4, 3))
    rows, columns, phase = np.moveaxis(drawn, -1, 0)[..., None, None]
    y, x = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    out = (np.sin(2 * np.pi * (rows * y + columns * x) + phase) * 0.6).sum(2)
    return torch.from_numpy(out + 0.3 * random.standard_normal(out.shape)).float()


@pytest.fixture
def net():
    torch.manual_seed(0)
    return QnA(SMALL).eval()


# The layer


@pytest.mark.parametrize('figures', LAYERS,
                         ids=lambda one: f'{one["kernel_size"]}x{one["kernel_size"]}-stride'
                                         f'{one["stride"]}')
def test_layer_gives_the_official_figures(figures, net):
    official = {LAYER + name: parity.fill(name, shape)
                for name, shape in figures['state_dict'].items()}
    ours = {name.removeprefix('stages.0.blocks.0.attn.'): tensor
            for name, tensor in QnA.convert(official, net).items()}
    features = figures['features']
    layer = QueryAndAttend(figures['in_channels'], features, features // figures['heads'],
                           figures['n_queries'], figures['kernel_size'], figures['stride'])
    layer.load_state_dict(ours)
    with torch.no_grad():
        out = layer(waves(**figures['input']).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert parity.compare([out], figures['outputs'], [1e-5]) < 1e-5


@pytest.mark.parametrize('kernel, stride, size', [(3, 1, (5, 7)), (3, 2, (5, 8)), (7, 2, (3, 4))])
def test_layer_is_the_textbook(kernel, stride, size):
    torch.manual_seed(0)
    layer = QueryAndAttend(16, 32, 8, 2, kernel, stride)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, *size, 16)
    torch.testing.assert_close(layer(x), unfold_attention(layer, x), atol=1e-5, rtol=1e-4)


def test_ours_equals_the_textbook_form_and_takes_less_memory():
    found = compare(case('qna', 160, 224), repeats=1)
    assert found.difference < 1e-3  # gradients of parameters are sums over all positions
    assert found.memory_forward < 1 / 3
    assert found.memory_both < 1 / 2


@pytest.mark.parametrize('level', [-70., 70.])
def test_only_differences_of_scores_matter(level):
    torch.manual_seed(0)
    scores, values = torch.randn(1, 2, 3, 6, 7), torch.randn(1, 3, 4, 6, 7)
    tables = torch.randn(9, 6), torch.randn(9, 6)
    torch.testing.assert_close(query_and_attend(scores + level, values, *tables, 1),
                               query_and_attend(scores, values, *tables, 1),
                               atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize('cast', [True, False], ids=['autocast', 'bfloat16'])
def test_exponentials_are_float32(cast, net, monkeypatch):
    seen = []

    def spy(*tensors):
        seen.extend(tensor.dtype for tensor in tensors[:4])
        return query_and_attend(*tensors)

    monkeypatch.setattr(qna, 'query_and_attend', spy)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=cast):
        maps = net(x) if cast else net.bfloat16()(x.bfloat16())
    assert set(seen) == {torch.float32} and len(seen) == 4 * 6
    assert all(y.isfinite().all() for y in maps)


# Windows


def test_padded_tokens_are_no_keys(net):
    """A map smaller than its window: attention among its own tokens alone."""
    attn = net.stages[2]['blocks'][0].attn
    torch.nn.init.normal_(attn.rpe_bias)
    block = net.stages[2]['blocks'][:1]
    x = torch.randn(2, 3, 2, 128)
    with torch.no_grad():
        found = net.in_windows(block, x, 4)
        tokens = block[0].norm1(x).flatten(1, 2)
        per_head = attn.to_qkv(tokens).unflatten(-1, (attn.heads, 3, 16))
        q, k, v = per_head.permute(3, 0, 2, 1, 4)
        table = relative_position_bias(attn.rpe_bias.unflatten(0, (7, 7)))
        own = [4 * row + column for row in range(3) for column in range(2)]
        weights = (q @ k.mT / 4 + table[:, own][:, :, own]).softmax(-1)
        mixed = attn.to_out((weights @ v).transpose(1, 2).flatten(2)).view(x.shape)
        expected = x + mixed
        expected = expected + block[0].mlp(block[0].norm2(expected))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


# Names and rates


def flax(net):
    """The network's weights under Flax's names, in Flax's layouts, and a classifier's."""
    leaves = {'norm1.': 'LayerNorm_0.', 'norm2.': 'LayerNorm_1.', 'to_k.weight': 'Wk',
              'mlp.fc1.': 'MlpBlock_0.Dense_0.', 'mlp.fc2.': 'MlpBlock_0.Dense_1.',
              'skip.': 'Conv_0.', 'norm3.': 'ClassificationHead_0.LayerNorm_0.'}
    state = {'ClassificationHead_0.head_logits.kernel': torch.zeros(256, 10)}
    for name, tensor in net.state_dict().items():
        if name.startswith(('norm0', 'norm1', 'norm2')):
            continue
        if name.startswith('stages'):
            _, stage, kind, *rest = name.split('.')
            local = SMALL['local'][int(stage)]
            number = int(rest.pop(0)) if kind == 'blocks' else SMALL['depths'][int(stage)]
            windowed = number < local
            block = (f'LSAStage_{stage}.MSA_Block_{number + 1}.' if windowed else
                     f'QnAStage_{stage}.QnA_Block_{number - local + 1}')
            block += '_stride_2.' if kind == 'downsample' else '.' * (not windowed)
            name = block + '.'.join(rest)
            name = name.replace('attn.rpe_bias', 'attn.RelativePositionalEmbedding_0.rpe_bias'
                                if windowed else 'attn.rpe_bias')
            name = name.replace('attn.', 'MultiHeadSelfAttention_0.' if windowed
                                else 'FusedKQnA_0.')
        name = name.replace('patch_embed.proj', 'StemBlock_0.conv_1x1')
        for ours, official in leaves.items():
            name = name.replace(ours, official)
        if 'LayerNorm' in name:
            name = name.replace('.weight', '.scale')
        elif name.endswith('weight') or name.endswith('Wk'):
            name = name.replace('.weight', '.kernel')
            tensor = tensor.permute(*range(2, tensor.ndim), 1, 0)
            tensor = tensor[None, None] if 'Conv_0' in name else tensor
        elif name.endswith('attn_scale_weights'):
            tensor = tensor[None, None]
        state[name] = tensor
    return state


def test_flax_checkpoint(net, tmp_path):
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    torch.save(flax(net), tmp_path / 'qna.pth')
    other = QnA(SMALL, init_cfg=dict(type='Pretrained', checkpoint=tmp_path / 'qna.pth'))
    other.init_weights()
    for name, tensor in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor) != name.startswith(
            ('norm0', 'norm1', 'norm2')), name


def test_own_names_stay(net):
    state = net.state_dict()
    assert all(torch.equal(tensor, state[name])
               for name, tensor in QnA.convert(state, net).items())


def test_rates_count_the_blocks_between_stages():
    with torch.device('meta'):
        net = create('qna_tiny', drop_path_rate=0.15)
    rates = []
    for stage in net.stages:
        blocks = [*stage['blocks'], *([stage['downsample']] if 'downsample' in stage else [])]
        rates += [block.drop_path.drop_prob for block in blocks]
    assert rates == pytest.approx([0.01 * step for step in range(16)])
