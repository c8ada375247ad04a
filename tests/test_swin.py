"""What is Swin's own: its formula at awkward sizes, its tables, its official checkpoints."""
from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F

from backbones import UserError, create
from backbones.checkpoint import load_pretrained
from backbones.layers import (
    pad_to_multiple,
    relative_position_bias,
    resize_table,
    window_partition,
    window_reverse,
)
from backbones.swin import Swin

SMALL = dict(dim=24, depths=(2, 2, 2), heads=(2, 4, 4), window=7)
TABLE = 'layers.0.blocks.1.attn.relative_position_bias_table'


@pytest.fixture
def net():
    """A small Swin whose every parameter matters: none is at 0 or 1."""
    torch.manual_seed(0)
    net = Swin(SMALL, out_indices=(0, 1, 2)).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.3)
    return net


def textbook_attention(attn, u, shifted):
    """Window attention on one H x W x C map, token by token, without rolling anything."""
    height, width, channels = u.shape
    window = attn.window
    shift = window // 2 if shifted else 0
    rows, columns = -(-height // window) * window, -(-width // window) * window
    members = defaultdict(list)
    for y in range(rows):
        for x in range(columns):
            at = (y - shift) % rows, (x - shift) % columns
            members[at[0] // window, at[1] // window].append((y, x, *at))

    def region(position, size):
        return (position >= size - window) + (position >= size - shift) if shifted else 0

    out = torch.zeros_like(u)
    for tokens in members.values():
        t = torch.stack([u[y, x] if y < height and x < width else torch.zeros(channels)
                         for y, x, _, _ in tokens])
        qkv = attn.qkv(t).view(len(t), 3, attn.heads, channels // attn.heads)
        rows_of = torch.tensor([[(a - b + window - 1) * (2 * window - 1) + (c - d + window - 1)
                                 for _, _, b, d in tokens] for _, _, a, c in tokens])
        regions = torch.tensor([[region(a, rows), region(c, columns)] for _, _, a, c in tokens])
        apart = (regions[:, None] != regions[None]).any(-1)
        heads = []
        for head in range(attn.heads):
            q, k, v = qkv[:, :, head].unbind(1)
            logits = q @ k.T / q.shape[1] ** 0.5
            logits += attn.relative_position_bias_table[rows_of, head]
            heads.append((logits - 100.0 * apart).softmax(1) @ v)
        mixed = attn.proj(torch.cat(heads, 1))
        for (y, x, _, _), value in zip(tokens, mixed):
            if y < height and x < width:
                out[y, x] = value
    return out


def textbook(net, image):
    """Outputs for one image, straight from the paper and the detection code's rules."""
    height, width = -(-image.shape[1] // 4) * 4, -(-image.shape[2] // 4) * 4
    padded = torch.zeros(3, height, width)
    padded[:, :image.shape[1], :image.shape[2]] = image
    embed = net.patch_embed
    patches = padded.view(3, height // 4, 4, width // 4, 4).permute(1, 3, 0, 2, 4).flatten(2)
    x = embed.norm(patches @ embed.proj.weight.flatten(1).T + embed.proj.bias)
    outputs = []
    for stage, layer in enumerate(net.layers):
        for i, block in enumerate(layer['blocks']):
            x = x + textbook_attention(block.attn, block.norm1(x), shifted=i % 2 == 1)
            hidden = F.gelu(block.mlp.fc1(block.norm2(x)))
            x = x + block.mlp.fc2(hidden)
        outputs.append(net.get_submodule(f'norm{stage}')(x).permute(2, 0, 1))
        if 'downsample' in layer:
            rows, columns, channels = x.shape
            even = torch.zeros(rows + rows % 2, columns + columns % 2, channels)
            even[:rows, :columns] = x
            merge = layer['downsample']
            x = torch.stack([torch.stack([merge.reduction(merge.norm(torch.cat([
                even[y, x], even[y + 1, x], even[y, x + 1], even[y + 1, x + 1]])))
                for x in range(0, even.shape[1], 2)]) for y in range(0, even.shape[0], 2)])
    return outputs


@pytest.mark.parametrize('size', [(97, 131), (33, 65), (112, 56)])
def test_equals_the_textbook(net, size):
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        ours = net(images)
        for i, image in enumerate(images):
            for output, expected in zip(ours, textbook(net, image), strict=True):
                assert output[i].shape == expected.shape
                error = (output[i] - expected).abs().max() / expected.std()
                assert error < 2e-5


def test_shifting_changes_a_map_of_one_window(net):
    """The detection code shifts there too; the classification code does not."""
    attn, x = net.layers[0]['blocks'][1].attn, torch.randn(7, 7, 24)
    assert (textbook_attention(attn, x, True) - textbook_attention(attn, x, False)).abs().max() > 1


def test_bias_is_the_table_at_the_relative_position():
    h, w, heads = 3, 5, 2
    table = torch.randn(2 * h - 1, 2 * w - 1, heads, requires_grad=True)
    bias = relative_position_bias(table)
    assert bias.shape == (heads, h * w, h * w)
    for query in range(h * w):
        for key in range(h * w):
            dy, dx = query // w - key // w, query % w - key % w
            assert torch.equal(bias[:, query, key], table[dy + h - 1, dx + w - 1])
    bias.sum().backward()
    pairs = torch.tensor([1, 2, 3, 2, 1])[:, None] * torch.tensor([1, 2, 3, 4, 5, 4, 3, 2, 1])
    assert torch.equal(table.grad[..., 0], pairs.float())


def test_windows_and_back():
    x = torch.arange(2 * 5 * 7 * 3.).view(2, 5, 7, 3)
    padded = pad_to_multiple(x, (4, 3))
    assert padded.shape == (2, 8, 9, 3)
    assert padded[:, 5:].abs().sum() == padded[:, :, 7:].abs().sum() == 0
    windows = window_partition(padded, (4, 3))
    assert windows.shape == (2 * 2 * 3, 12, 3)
    assert torch.equal(windows[1].view(4, 3, 3), padded[0, :4, 3:6])
    assert torch.equal(windows[9].view(4, 3, 3), padded[1, 4:, :3])
    assert torch.equal(window_reverse(windows, (4, 3), (8, 9)), padded)


def test_resize_table():
    assert resize_table(table := torch.randn(13, 13, 3), (13, 13)) is table
    resized = resize_table(torch.full((13, 13, 3), 0.7, dtype=torch.half), (23, 27))
    assert resized.shape == (23, 27, 3) and resized.dtype == torch.half
    assert (resized - 0.7).abs().max() < 1e-3
    ramp = torch.linspace(-1, 1, 13).view(1, 13, 1).repeat(13, 1, 1)
    inner = resize_table(ramp, (13, 26), 'bilinear')[6, 1:-1, 0]
    assert torch.allclose(inner.diff(), torch.tensor(1 / 12), atol=1e-6)


def official(net):
    """A checkpoint as the ImageNet code writes it."""
    state = {name: torch.randn_like(tensor) for name, tensor in net.state_dict().items()
             if not name.startswith('norm')}
    state['norm.weight'] = state['norm.bias'] = torch.randn(net.out_channels[-1])
    state['head.weight'], state['head.bias'] = torch.randn(10, 96), torch.randn(10)
    state['layers.0.blocks.0.attn.relative_position_index'] = torch.zeros(49, 49).long()
    state['layers.0.blocks.1.attn_mask'] = torch.zeros(64, 49, 49)
    return dict(model=state)


def test_official_checkpoint(net, tmp_path):
    torch.save(official(net), tmp_path / 'swin.pth')
    fresh = Swin(SMALL, out_indices=(0, 1, 2), init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'swin.pth')))
    report = load_pretrained(fresh, tmp_path / 'swin.pth')
    assert 'not in it: norm0.weight, norm0.bias, norm1.weight, norm1.bias, ...' in report
    assert fresh.norm2.weight.unique().tolist() == [1] and not fresh.norm2.bias.any()
    saved = torch.load(tmp_path / 'swin.pth')['model']
    fresh.init_weights()
    assert torch.equal(fresh.state_dict()[TABLE], saved[TABLE])
    assert torch.equal(fresh.layers[1]['downsample'].reduction.weight,
                       saved['layers.1.downsample.reduction.weight'])


def test_checkpoint_of_another_window(net, tmp_path):
    torch.save(official(net), tmp_path / 'swin.pth')
    wide = Swin(SMALL, out_indices=(0, 1, 2), window=12)
    load_pretrained(wide, tmp_path / 'swin.pth')
    saved = torch.load(tmp_path / 'swin.pth')['model'][TABLE]
    expected = F.interpolate(saved.T.view(1, 2, 13, 13), (23, 23), mode='bicubic')
    assert torch.allclose(wide.state_dict()[TABLE], expected.view(2, -1).T)


def test_variants():
    with torch.device('meta'):
        millions = {arch: sum(p.numel() for p in Swin(arch).parameters()) / 1e6
                    for arch in Swin.archs}
    assert millions == pytest.approx(dict(tiny=27.52, small=48.84, base=86.75, large=195.0,
                                          base_384=86.88, large_384=195.2), abs=5e-3, rel=1e-3)
    with torch.device('meta'):
        assert create('swin_base_384').layers[3]['blocks'][0].attn.window == 12


def test_only_chosen_parameters(net):
    names = [name for name, _ in Swin(SMALL, out_indices=(1,)).named_parameters()]
    assert not any(name.startswith(('layers.2', 'layers.1.downsample', 'norm0', 'norm2'))
                   for name in names)
    assert 'norm1.weight' in names and 'layers.0.downsample.reduction.weight' in names


def test_tables_take_no_weight_decay(net):
    names = net.no_weight_decay()
    assert len(names) == 6 and TABLE in names
    assert names <= dict(net.named_parameters()).keys()


def test_unknown_setting():
    with pytest.raises(UserError, match="no setting 'windows'.*did you mean window"):
        Swin(windows=12)
