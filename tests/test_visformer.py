"""What is Visformer's own: its windows, its plain form, timm's names."""
import pytest
import timm
import torch
import torch.nn.functional as F

from backbones import UserError, create
from backbones.layers import shift_mask
from backbones.visformer import Attention


def randomised(net):
    """Every parameter and statistic off its initial value."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            mean = float(name.endswith('var') or (tensor.ndim == 1 and name.endswith('weight')))
            tensor.copy_(mean + 0.05 * noise)
    return net.eval()


def textbook(attn, x, shifted):
    """Token by token: who sees whom, at which distance, straight from the definition."""
    batch, dim, height, width = x.shape
    window, heads = attn.window, attn.heads
    shift = window // 2 if shifted else 0
    x = F.pad(x, (0, -width % window, 0, -height % window))
    rows, columns = x.shape[2:]
    qkv = F.conv2d(x, attn.qkv.weight).unflatten(1, (3, heads, -1)).flatten(4)
    q, k, v = (t.transpose(-2, -1) for t in qkv.unbind(1))
    y, x = (t.flatten() for t in torch.meshgrid(torch.arange(rows), torch.arange(columns),
                                                indexing='ij'))
    place = torch.stack([(y - shift) % rows, (x - shift) % columns])  # after the roll
    wrapped = torch.stack([y < shift, x < shift])
    same_window = (place[:, :, None] // window == place[:, None] // window).all(0)
    same_region = (wrapped[:, :, None] == wrapped[:, None]).all(0)
    dy, dx = (place[:, :, None] - place[:, None]).clamp(1 - window, window - 1) + window - 1
    bias = attn.relative_position_bias_table[dy * (2 * window - 1) + dx].permute(2, 0, 1)
    logits = (q / (dim // heads)) @ k.transpose(-2, -1) + bias
    logits = logits.masked_fill(~(same_window & same_region), -torch.inf)
    out = (logits.softmax(-1) @ v).transpose(-2, -1).reshape(batch, dim, rows, columns)
    return F.conv2d(out[..., :height, :width], attn.proj.weight)


@torch.no_grad()
@pytest.mark.parametrize('size', [(8, 12), (4, 4), (5, 7), (3, 9)])
@pytest.mark.parametrize('shifted', [False, True])
def test_window_attention(size, shifted):
    """Padded zeros are keys, and a map of one window is shifted too."""
    torch.manual_seed(0)
    attn = Attention(6, heads=2, window=4, qk_power=-0.5)
    torch.nn.init.normal_(attn.relative_position_bias_table)
    torch.nn.init.normal_(attn.qkv.weight)
    x = torch.randn(2, 6, *size)
    mask = shift_mask(*size, 4, x.device) if shifted else None
    torch.testing.assert_close(attn(x, mask), textbook(attn, x, shifted), atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(('depths', 'shifted'), [
    ((1, 4, 6, 3), [True, False, True, False, True, False, True, False, True]),
    ((1, 1, 2, 2), [False, True, False, True]),
    ((0, 1, 1, 2), [True, False, True]),
])
def test_shifts_alternate_over_the_whole_network(depths, shifted):
    net = create('visformer_swin_tiny_v2', depths=depths).eval()
    seen = []
    for module in net.modules():
        if isinstance(module, Attention):
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1] is not None))
    net(torch.randn(1, 3, 64, 64))
    assert seen == shifted


@torch.no_grad()
@pytest.mark.parametrize('size', [(224, 224), (96, 160)])
def test_plain_form_is_timms(size):
    """By name, and with position embeddings resampled to a size that timm builds anew for."""
    ours = randomised(create('visformer_plain_tiny', depths=(2, 1, 2)))
    theirs = timm.create_model('visformer_tiny', depth=(2, 1, 2), img_size=size, num_classes=10)
    randomised(theirs)
    at_size = create('visformer_plain_tiny', depths=(2, 1, 2), img_size=size)
    state = theirs.state_dict()
    for net in (ours, at_size.eval()):
        converted = net.convert(state, net)
        assert {name: t.shape for name, t in converted.items()} == {
            name: t.shape for name, t in net.state_dict().items()}
    at_size.load_state_dict(converted)
    x = torch.randn(1, 3, *size)
    expected = theirs.forward_intermediates(x, intermediates_only=True)
    torch.testing.assert_close(at_size(x), tuple(expected), atol=1e-4, rtol=1e-4)

    for name, embedding in ours.named_parameters():
        if name.startswith('pos_embed'):
            resized = F.interpolate(embedding, state[name].shape[2:], mode='bilinear')
            assert size == (224, 224) or resized.shape != embedding.shape
            state[name] = resized
        else:
            state[name] = embedding
    theirs.load_state_dict({**state, **dict(ours.named_buffers())})
    expected = theirs.forward_intermediates(x, intermediates_only=True)
    torch.testing.assert_close(ours(x), tuple(expected), atol=1e-4, rtol=1e-4)


def test_classifier_checkpoint():
    """Of a Swin-Visformer classifier all but the head and the position embeddings is loaded,
    and a table of another window is resampled."""
    net = create('visformer_swin_tiny_v2', depths=(1, 1, 1, 1))
    state = {name.replace('norm2.', 'norm2.bn.').replace('stem.1.', 'stem.1.bn.'): tensor
             for name, tensor in net.state_dict().items() if not name.startswith('norm')}
    table = 'stage2.0.attn.relative_position_bias_table'
    state[table] = torch.arange(169.)[:, None].expand(-1, 6)
    state.update({'pos_embed0': torch.zeros(1, 48, 56, 56), 'norm.bn.weight': torch.ones(384),
                  'head.weight': torch.ones(1000, 384),
                  'stage2.0.attn.relative_position_index': torch.zeros(49, 49, dtype=torch.long)})
    converted = net.convert(state, net)
    own = net.state_dict()
    assert converted.keys() == {name for name in own if not name.startswith(net.added)}
    assert converted[table].shape == own[table].shape
    assert converted[table][364].tolist() == pytest.approx([84.] * 6)  # the middle stays


def test_forms():
    plain = create('visformer_plain_tiny')
    assert plain.out_strides == (8, 16, 32) and plain.out_channels == (96, 192, 384)
    assert plain.no_weight_decay() == {'pos_embed1', 'pos_embed2', 'pos_embed3'}
    first = create('visformer_swin_small', out_indices=(0,))
    assert {name.split('.')[0] for name in first.state_dict()} == {'stem', 'patch_embed0', 'norm0'}
    with pytest.raises(UserError, match='one entry for each of the depths'):
        create('visformer_plain_tiny', depths=(1, 2, 2, 2))
