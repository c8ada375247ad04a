"""What is LeViT's own: its formula at awkward sizes, its five maps, whose names it reads."""
import pytest
import timm
import torch
import torch.nn.functional as F

from backbones import UserError, create
from backbones.checkpoint import load_pretrained
from backbones.levit import LeViT, offset_bias
from suite.parity import fill

SMALL = dict(dims=(32, 40, 48), depths=(0, 0, 1, 2, 1), heads=(2, 3, 4), key_dim=8)
TABLE = 'layers.2.blocks.0.attn.attention_biases'


def stirred(net):
    """The network with no parameter or statistic at 0 or 1."""
    state = net.state_dict()
    net.load_state_dict({name: fill(name, tensor.shape) if tensor.is_floating_point() else tensor
                         for name, tensor in state.items()})
    return net


@pytest.fixture(scope='module')
def net():
    return stirred(LeViT(SMALL)).eval()


def resized(table, height, width):
    """A table of R x R offsets for another map, as one reads it in a textbook."""
    side = len(table)

    def at(position, size):
        place = position * (side - 1) / (size - 1) if size > 1 else 0.
        low = min(int(place), side - 2)
        return low, place - low

    out = torch.empty(height, width)
    for y in range(height):
        for x in range(width):
            (i, a), (j, b) = at(y, height), at(x, width)
            upper = (1 - b) * table[i, j] + b * table[i, j + 1]
            lower = (1 - b) * table[i + 1, j] + b * table[i + 1, j + 1]
            out[y, x] = (1 - a) * upper + a * lower
    return out


def layer(module, t):
    """Linear layer and norm in eval mode. Tokens x C."""
    norm = module.bn
    t = (t @ module.c.weight.T - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    return t * norm.weight + norm.bias


def mlp(module, t):
    return layer(module[2], F.hardswish(layer(module[0], t)))


def attention(module, u, step):
    """Attention on one H x W x C map, query by query and head by head."""
    height, width, channels = u.shape
    key_dim, value_dim = module.widths
    queries = [(y, x) for y in range(0, height, step) for x in range(0, width, step)]
    tokens = u.reshape(-1, channels)
    if step == 1:
        packed = layer(module.qkv, tokens).view(len(tokens), module.heads, -1)
        q, k, v = packed.split((key_dim, key_dim, value_dim), -1)
    else:
        k, v = layer(module.kv, tokens).view(len(tokens), module.heads, -1).split(
            (key_dim, value_dim), -1)
        q = layer(module.q, torch.stack([u[at] for at in queries])).view(
            len(queries), module.heads, -1)
    heads = []
    for head in range(module.heads):
        table = module.attention_biases[head].view(module.side, module.side)
        if (height, width) != table.shape:
            table = resized(table, height, width)
        rows = []
        for number, (y, x) in enumerate(queries):
            bias = torch.stack([table[abs(y - b), abs(x - a)]
                                for b in range(height) for a in range(width)])
            logits = k[:, head] @ q[number, head] / key_dim ** 0.5 + bias
            rows.append(logits.softmax(0) @ v[:, head])
        heads.append(torch.stack(rows))
    out = layer(module.proj[1], F.hardswish(torch.cat(heads, 1)))
    return out.view(-(-height // step), -(-width // step), -1)


def textbook(net, image):
    """The five maps of one image, by the official code's rules."""
    def halve(module, x):
        return module.bn(F.conv2d(x[None], module.c.weight, stride=2, padding=1))[0]

    x = F.hardswish(halve(net.stem, image))
    outputs = []
    for stage in net.layers[:2]:
        x = F.hardswish(halve(stage['downsample'], x))
        outputs.append(x)
    u = halve(net.layers[2]['downsample'], x).permute(1, 2, 0)
    for number, stage in enumerate(net.layers[2:]):
        if number:
            u = attention(stage['downsample'], u, step=2)
            u = u + mlp(stage['downsample'].mlp, u)
        for block in stage['blocks']:
            u = u + attention(block.attn, u, step=1)
            u = u + mlp(block.mlp, u)
        outputs.append(u.permute(2, 0, 1))
    return outputs


@torch.no_grad()
@pytest.mark.parametrize('size', [(97, 131), (33, 65), (224, 32)])
def test_equals_the_textbook(net, size):
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    maps = net(images)
    for i, image in enumerate(images):
        for output, expected in zip(maps, textbook(net, image), strict=True):
            assert output[i].shape == expected.shape
            assert (output[i] - expected).abs().max() / expected.std() < 1e-4


@pytest.mark.parametrize('step', [1, 2])
def test_bias_is_the_table_at_the_absolute_offset(step):
    table = torch.randn(2, 5, 4, requires_grad=True)
    bias = offset_bias(table, step)
    queries = [(y, x) for y in range(0, 5, step) for x in range(0, 4, step)]
    assert bias.shape == (2, len(queries), 20)
    counts = torch.zeros(5, 4)
    for number, (y, x) in enumerate(queries):
        for key in range(20):
            offset = abs(y - key // 4), abs(x - key % 4)
            assert torch.equal(bias[:, number, key], table[:, offset[0], offset[1]])
            counts[offset] += 1
    bias.sum().backward()
    assert torch.equal(table.grad, counts.expand(2, 5, 4))


def test_tables_learn_at_other_sizes():
    """All of their entries, where the maps are not smaller than at 224."""
    net = stirred(LeViT(SMALL)).train()
    sum(y.square().sum() for y in net(torch.randn(2, 3, 225, 272))).backward()
    for name in net.no_weight_decay():
        assert net.get_parameter(name).grad.abs().min() > 0
    assert len(net.no_weight_decay()) == 6 and TABLE in net.no_weight_decay()


@torch.no_grad()
def test_fused_attention_equals_the_one_that_learns(net):
    """No mask that learns, or one that does: two kernels on a CPU."""
    images = torch.randn(1, 3, 96, 160, generator=torch.Generator().manual_seed(2))
    fused = net(images)
    with torch.enable_grad():
        learning = net(images)
    for a, b in zip(fused, learning):
        assert b.requires_grad and (a - b).abs().max() / b.std() < 1e-5


# timm's network at 224, where its tables fit; what it lacks are the stem's maps.


@torch.no_grad()
@pytest.mark.parametrize('name', ['levit_128s', 'levit_conv_128s'])
def test_equals_timm(name, tmp_path):
    theirs = stirred(timm.create_model(name)).eval()
    torch.save(theirs.state_dict(), tmp_path / 'levit.pth')
    ours = create('levit_128s').eval()
    own = len(ours.state_dict())
    report = load_pretrained(ours, tmp_path / 'levit.pth')
    assert report.startswith(f'loaded {own} of {own} tensors, 100.0% of the parameters')
    images = torch.randn(2, 3, 224, 224)
    expected = theirs.forward_intermediates(images, intermediates_only=True)
    for output, other in zip(ours(images)[2:], expected, strict=True):
        assert (output - other).abs().max() / other.std() < 1e-4


def official(net, conv):
    """A checkpoint as the official code writes it; ``conv``: its form of 1 x 1 convolutions."""
    state = {}
    for i, module in enumerate((net.stem, *(net.layers[j]['downsample'] for j in range(3)))):
        state |= module.state_dict(prefix=f'patch_embed.{2 * i}.')
    modules = []
    for stage in net.layers[2:]:
        if hasattr(stage['downsample'], 'kv'):
            modules += [stage['downsample'], stage['downsample'].mlp]
        modules += [part for block in stage['blocks'] for part in (block.attn, block.mlp)]
    for i, module in enumerate(modules):
        prefix = f'blocks.{i}.' if hasattr(module, 'kv') else f'blocks.{i}.m.'
        for name, tensor in module.state_dict().items():
            if not name.startswith('mlp.'):
                linear = conv and name.endswith('c.weight')
                name = f'q.1.{name.removeprefix("q.")}' if name.startswith('q.') else name
                state[prefix + name] = tensor[..., None, None] if linear else tensor
        if hasattr(module, 'side'):
            state[f'{prefix}attention_bias_idxs'] = torch.zeros(module.side ** 2).long()
    state['head.l.weight'], state['head_dist.bn.bias'] = torch.zeros(10, 48), torch.zeros(48)
    return dict(model=state)


@pytest.mark.parametrize('conv', [False, True])
def test_official_checkpoint(net, conv, tmp_path):
    torch.save(official(net, conv), tmp_path / 'levit.pth')
    fresh = LeViT(SMALL)
    own = len(fresh.state_dict())
    report = load_pretrained(fresh, tmp_path / 'levit.pth')
    assert report.startswith(f'loaded {own} of {own} tensors, 100.0% of the parameters')
    for name, tensor in net.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name


def test_fewer_stages_take_their_share_of_a_checkpoint(net, tmp_path):
    torch.save(official(net, conv=False), tmp_path / 'levit.pth')
    short = LeViT(SMALL, out_indices=(0, 3))
    assert '100.0% of the parameters' in load_pretrained(short, tmp_path / 'levit.pth')
    assert torch.equal(short.state_dict()[TABLE], net.state_dict()[TABLE])


def test_own_checkpoint(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / 'own.pth')
    assert '100.0% of the parameters' in load_pretrained(LeViT(SMALL), tmp_path / 'own.pth')


# The fifth map


@torch.no_grad()
@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3, 4), (0, 1, 2, 3)])
def test_last_map_merged(net, out_indices):
    merged = LeViT(SMALL, out_indices=out_indices, merge_last=True).eval()
    merged.load_state_dict(net.state_dict())
    assert (merged.out_indices, merged.out_channels) == ((0, 1, 2, 3), (8, 16, 32, 88))
    assert merged.out_strides == (4, 8, 16, 32)
    images = torch.randn(1, 3, 97, 131)
    *same, fine, coarse = net(images)
    *others, both = merged(images)
    assert all(torch.equal(a, b) for a, b in zip(others, same, strict=True))
    assert both.shape[2:] == fine.shape[2:] and both.is_contiguous()
    assert torch.equal(both[:, :40], fine)
    assert torch.equal(both[:, 40:], F.interpolate(coarse, fine.shape[2:], mode='bilinear'))


def test_nothing_to_merge_into():
    with pytest.raises(UserError, match=r'map of index 3, which out_indices \(0, 2\) lack'):
        LeViT(SMALL, out_indices=(0, 2), merge_last=True)


def test_convolutional_stages_take_no_blocks():
    with pytest.raises(UserError, match=r'depths \(1, 0, 2, 2, 2\) must start with 0, 0'):
        LeViT(depths=(1, 0, 2, 2, 2))


def test_stages_and_layers():
    net = LeViT('128s')
    ids = {name: (net.stage_id(name), net.layer_id(name)) for name, _ in net.named_parameters()}
    assert net.num_layers == 9
    assert ids['stem.c.weight'] == (0, 0) and ids['layers.2.downsample.bn.bias'] == (3, 0)
    assert ids['layers.1.downsample.c.weight'] == (2, 0)
    assert ids[TABLE] == (3, 1)
    assert ids['layers.3.downsample.attention_biases'] == (4, 2)
    assert ids['layers.3.blocks.0.mlp.2.bn.weight'] == (4, 3)
    assert ids['layers.4.blocks.3.attn.qkv.c.weight'] == (5, 9)


def test_branches_start_as_zero():
    gains = {name: tensor.unique().tolist() for name, tensor in LeViT().named_parameters()
             if name.endswith('bn.weight')}
    zero = {name for name, values in gains.items() if values == [0]}
    assert zero == {name for name in gains
                    if name.endswith('mlp.2.bn.weight') or 'attn.proj' in name}
    assert all(gains[name] == [1] for name in gains.keys() - zero)


def test_drop_path_is_the_same_for_all_blocks():
    rates = [module.drop_prob for module in LeViT(SMALL, drop_path_rate=0.1).modules()
             if type(module).__name__ == 'DropPath']
    assert rates == [0.1] * 6
