"""CETNet, our reconstruction: its attention without windows, its embeddings by hand, the sizes
that it was fitted to."""
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import stirred

from backbones import cetnet
from backbones.cetnet import ARCHS, Block, CETNet, ConvEmbedding, LocalWindowAttention
from backbones.checkpoint import load_pretrained
from suite import published

SMALL = dict(dim=24, depths=(2, 1, 2), heads=(2, 4, 4), window=5)
TABLE = 'stages.2.blocks.1.attn.relative_position_bias_table'


def ready(module):
    """In float64, where equal means equal, with every parameter away from 0 and 1."""
    return stirred(module).double()


def textbook_attention(attn, x, shifted):
    """Every position of the padded map with every other one; what lies in another window
    counts nothing. H x W x C."""
    height, width, dim = x.shape
    window = attn.window
    shift = window // 2 if shifted else 0
    qkv = F.linear(x, attn.qkv.weight, attn.qkv.bias).permute(2, 0, 1)[None]
    qkv = F.conv2d(qkv, attn.local.conv.weight, padding=1, groups=3 * dim)
    qkv = attn.local.bn(qkv)
    rows, columns = height + -height % window, width + -width % window
    qkv = F.pad(qkv, (0, columns - width, 0, rows - height))[0].flatten(1)

    ys, xs = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing='ij')
    places = [((ys.flatten() - shift) % rows, rows), ((xs.flatten() - shift) % columns, columns)]
    together, apart, index = True, False, 0
    for place, size in places:
        together = together & (place[:, None] // window == place // window)
        torn = place >= size - shift  # came around the edge
        apart = apart | ((torn[:, None] != torn) & (shift > 0))
        steps = (place[:, None] - place + window - 1).clamp(0, 2 * window - 2)
        index = index * (2 * window - 1) + steps
    out = []
    for head, (q, k, v) in enumerate(zip(*(t.chunk(attn.heads) for t in qkv.chunk(3)))):
        logits = q.T @ k / math.sqrt(len(q)) + attn.relative_position_bias_table[index, head]
        logits = (logits - 100. * apart).masked_fill(~together, -torch.inf)
        out.append(v @ logits.softmax(1).T)
    out = torch.cat(out).view(dim, rows, columns)[:, :height, :width].permute(1, 2, 0)
    return F.linear(out, attn.proj.weight, attn.proj.bias)


def textbook_embedding(embedding, x, strides):
    """C x H x W -> H' x W' x D."""
    for unit, stride in zip(embedding.units, strides, strict=True):
        x = F.conv2d(x[None], unit.conv.weight, None, stride, padding=1)
        x = F.gelu(unit.bn(x))[0]
    return embedding.norm(x.permute(1, 2, 0))


def textbook(net, image):
    x, outputs = textbook_embedding(net.stem, image, (2, 1, 2, 1, 1)), []
    for i, stage in enumerate(net.stages):
        for number, block in enumerate(stage['blocks']):
            x = x + textbook_attention(block.attn, block.norm1(x), number % 2 == 1)
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
        outputs.append(net.get_submodule(f'norm{i}')(x).permute(2, 0, 1))
        if 'downsample' in stage:
            x = textbook_embedding(stage['downsample'], x.permute(2, 0, 1), (2,))
    return outputs


@pytest.mark.parametrize('size', [(97, 131), (33, 65), (80, 160)])
@torch.no_grad()
def test_network_is_the_textbook(size):
    net = ready(CETNet(SMALL, out_indices=(0, 1, 2)))
    images = torch.randn(2, 3, *size, dtype=torch.double)
    maps = net(images)
    for number, image in enumerate(images):
        for y, expected in zip(maps, textbook(net, image), strict=True):
            torch.testing.assert_close(y[number], expected)


@pytest.mark.parametrize('size', [(5, 5), (4, 3), (10, 6), (1, 12)])
@pytest.mark.parametrize('shifted', [False, True], ids=['plain', 'shifted'])
@torch.no_grad()
def test_attention_is_the_textbook(size, shifted):
    attn = ready(LocalWindowAttention(8, 2, 5))
    x = torch.randn(1, *size, 8, dtype=torch.double)
    mask = cetnet.shift_mask(*size, 5, x.device) if shifted else None
    torch.testing.assert_close(attn(x, mask)[0], textbook_attention(attn, x[0], shifted))


@torch.no_grad()
def test_local_part_looks_across_windows():
    """One pixel beyond a window's border, and no further."""
    attn = ready(LocalWindowAttention(8, 2, 5))
    x = torch.randn(1, 10, 10, 8, dtype=torch.double)
    for column, windows in [(5, [True, True]), (6, [False, True])]:
        other = x.clone()
        other[:, 2, column] += 1
        changed = (attn(other, None) - attn(x, None)).abs().amax((0, 3)) > 1e-9
        assert [changed[:5, :5].all(), changed[:5, 5:].all()] == windows
        assert not changed[5:].any()


def test_embeddings_are_convolutions():
    net = CETNet(SMALL, out_indices=(0, 1, 2))
    convs = [(conv.in_channels, conv.out_channels, conv.stride[0]) for conv in net.modules()
             if isinstance(conv, torch.nn.Conv2d) and conv.groups == 1]
    assert convs == [(3, 12, 2), (12, 12, 1), (12, 24, 2), (24, 24, 1), (24, 24, 1),
                     (24, 48, 2), (48, 96, 2)]
    embedding = ConvEmbedding((3, 4), (2,))
    assert embedding(torch.randn(2, 3, 9, 12)).shape == (2, 5, 6, 4)
    assert embedding(torch.full((1, 3, 8, 8), 7.)).mean(-1).abs().max() < 1e-5


# What is known


@pytest.mark.parametrize('arch, classifier', [
    ('tiny', 23_416_036), ('small', 33_521_968), ('base', 74_670_292)])
def test_sizes_are_the_published(arch, classifier):
    """The norm of the last output stands for that of the classifier."""
    with torch.device('meta'):
        net = CETNet(arch, out_indices=(3,))
        blocks = [[sum(p.numel() for p in block.parameters()) for block in stage['blocks']]
                  for stage in net.stages]
    dim = net.out_channels[0]
    count = sum(p.numel() for p in net.parameters()) + 1000 * (dim + 1)
    assert count == classifier
    network = published.read('CETNet')['networks'][arch]
    assert count / 1e6 == pytest.approx(network['parameters'], rel=0.02)
    for stage, counts in enumerate(blocks):
        width, heads = ARCHS[arch]['dim'] * 2 ** stage, ARCHS[arch]['heads'][stage]
        assert width == 32 * heads
        assert set(counts) == {12 * width ** 2 + 46 * width + 169 * heads}


def test_is_called_a_reconstruction():
    assert CETNet.reconstruction and 'our reconstruction' in cetnet.__doc__.splitlines()[0]
    configs = sorted((Path(__file__).parent.parent / 'configs' / 'cetnet').glob('*coco*.py'))
    configs += (Path(__file__).parent.parent / 'configs' / 'cetnet').glob('*ade20k.py')
    assert len(configs) == 5
    assert all('our reconstruction.' in path.read_text().splitlines()[0] for path in configs)


# Training


def test_initialisation():
    """Queries and keys of variance 1 make logits that softmax neither ignores nor takes for
    certain, and no kernel is so small that its norm's epsilon counts."""
    torch.manual_seed(0)
    net = CETNet(out_indices=(0, 1)).train()
    seen = []
    for module in net.modules():
        if isinstance(module, LocalWindowAttention):
            module.local.conv.register_forward_hook(lambda *args: seen.append(args[2].var()))
            module.local.register_forward_hook(lambda *args: seen.append(args[2].var()))
    with torch.no_grad():
        net(torch.randn(2, 3, 64, 96))
    assert min(seen[::2]) > 1e-3
    assert torch.stack(seen[1::2]).tolist() == pytest.approx([1] * 4, rel=0.05)


def test_drop_path_grows():
    net = CETNet(SMALL, out_indices=(0, 1, 2), drop_path_rate=0.4)
    rates = [block.drop_path.drop_prob for block in net.modules() if isinstance(block, Block)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_tables_take_no_weight_decay():
    names = CETNet(SMALL, out_indices=(0, 1, 2)).no_weight_decay()
    assert len(names) == 5 and TABLE in names


def test_own_checkpoint_of_another_window(tmp_path):
    net = ready(CETNet(SMALL, out_indices=(2,)))
    state = {name.replace('norm2.', 'norm.') if name.startswith('norm2.') else name: tensor
             for name, tensor in net.state_dict().items()}
    torch.save(dict(model={**state, 'head.weight': torch.ones(10, 96)}), tmp_path / 'net.pth')
    wide = CETNet(SMALL, out_indices=(2,), window=8)
    report = load_pretrained(wide, tmp_path / 'net.pth')
    assert report.endswith('; not in it: norm2.weight, norm2.bias')
    expected = F.interpolate(state[TABLE].float().T.view(1, 4, 9, 9), (15, 15), mode='bicubic')
    torch.testing.assert_close(wide.state_dict()[TABLE], expected.view(4, -1).T)
