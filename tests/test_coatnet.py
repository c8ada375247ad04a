"""What is CoAtNet's own: timm's numbers in every variant, its position biases, odd maps."""
import pytest
import timm
import torch
import torch.nn.functional as F

from backbones import UserError, create
from backbones.checkpoint import load_pretrained
from backbones.coatnet import PAPER_BLOCKS, TF_BLOCKS, CoAtNet, RelativeMlp
from backbones.maxvit import RelativeTable
from backbones.mbconv import POOLS

SIZE = (64, 96)
SMALL = dict(depths=(2, 1, 2, 2), dims=(32, 64, 96, 128))
TABLE = 'stages.2.blocks.1.attn.rel_pos.relative_position_bias_table'
# What timm calls the settings of the authors' blocks.
TIMM_TF = dict(conv_padding='same', conv_act_layer='gelu_tanh', conv_norm_eps=1e-3,
               transformer_norm_eps=1e-5, transformer_act_layer='gelu_tanh',
               transformer_rel_pos_type='bias_tf', stem_bias=True)
TIMM_PAPER = dict(TIMM_TF, conv_stride_mode='1x1', conv_pool_type='max2',
                  transformer_pool_type='max2')


def theirs(arch, **options):
    """timm's classifier, small; what starts at 0 and 1 is moved away, tables matter."""
    torch.manual_seed(0)
    net = timm.create_model(f'{arch}_224', depths=SMALL['depths'], embed_dim=SMALL['dims'],
                            stem_width=(16, 32), num_classes=10, **options)
    for name, tensor in net.state_dict().items():
        if name.endswith(('running_var', 'gamma')) or (
                tensor.ndim == 1 and name.endswith('weight')):
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            torch.nn.init.normal_(tensor, std=0.2)
        elif name.endswith('_table'):
            torch.nn.init.normal_(tensor)
    return net.eval()


def small(arch, **options):
    torch.manual_seed(1)
    return create(arch, **SMALL, stem=(16, 32), **{'out_norm': False, **options}).eval()


def agree(outputs, net, x):
    expected = net.forward_intermediates(x, intermediates_only=True)[1:]
    for output, other in zip(outputs, expected, strict=True):
        assert output.shape == other.shape
        assert (output - other).abs().max() / other.std() < 1e-5


@pytest.mark.parametrize('arch, ours, timms', [
    *((arch, {}, {}) for arch in CoAtNet.archs),
    pytest.param('coatnet_0', TF_BLOCKS, TIMM_TF, id='tfblocks'),
    pytest.param('coatnet_0', PAPER_BLOCKS, TIMM_PAPER, id='tfblocks_paper')])
@torch.no_grad()
def test_equals_timm(arch, ours, timms, tmp_path):
    """From its own checkpoint, classifier and all, at an oblong native size."""
    other, net = theirs(arch, img_size=SIZE, **timms), small(arch, img_size=SIZE, **ours)
    torch.save(other.state_dict(), tmp_path / 'coatnet.pth')
    own = len(net.state_dict())
    report = load_pretrained(net, tmp_path / 'coatnet.pth')
    assert report.startswith(f'loaded {own} of {own} tensors, 100.0% of the parameters')
    x = torch.randn(2, 3, *SIZE)
    agree(net(x), other, x)


@torch.no_grad()
def test_own_checkpoints_load_as_they_are(tmp_path):
    net, other = small('coatnet_0_rw'), small('coatnet_0_rw')
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    torch.save(net.state_dict(), tmp_path / 'ours.pth')
    load_pretrained(other, tmp_path / 'ours.pth')
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters()))


@torch.no_grad()
def test_bias_mlps_know_every_size():
    net = small('coatnet_rmlp_1_rw2')
    for size in (SIZE, (96, 64), (128, 128)):
        other = theirs('coatnet_rmlp_1_rw2', img_size=size)
        net.load_state_dict(net.convert(other.state_dict(), net), strict=False)
        x = torch.randn(1, 3, *size)
        agree(net(x), other, x)


def bias_of(table, size):
    """Bias of every query for every key, one by one; heads x rows x columns, key minus query."""
    places = [(y, x) for y in range(size[0]) for x in range(size[1])]
    return torch.stack([torch.stack([table[:, k[0] - q[0] + size[0] - 1, k[1] - q[1] + size[1] - 1]
                                     for k in places], 1) for q in places], 1)


@torch.no_grad()
def test_tables():
    """At home, and on a map of another size, resampled bilinearly."""
    module = RelativeTable(3, (4, 4))
    table = torch.nn.init.normal_(module.relative_position_bias_table)
    assert torch.equal(module((4, 4))[0], bias_of(table, (4, 4)))
    resized = F.interpolate(table[None], (5, 9), mode='bilinear')[0]
    torch.testing.assert_close(module((3, 5))[0], bias_of(resized, (3, 5)))


@torch.no_grad()
def test_table_from_an_mlp():
    """Offsets are query minus key there, rows first, on a logarithmic scale."""
    torch.manual_seed(0)
    module, size = RelativeMlp(3, 16), (2, 3)
    bias = module(size)[0]
    query, key = (0, 2), (1, 0)
    offset = torch.tensor([0. - 1, 2. - 0])
    expected = module.mlp(offset.sign() * (1 + offset.abs()).log())
    torch.testing.assert_close(bias[:, query[0] * 3 + query[1], key[0] * 3 + key[1]], expected)


def test_layouts_of_tables():
    """timm's flat ones count query minus key; those of another size are resampled."""
    net = small('coatnet_0')
    heads = SMALL['dims'][2] // 32
    flat = torch.randn(27 * 27, heads)
    expected = flat.view(27, 27, heads).permute(2, 0, 1).flip(1, 2)
    assert torch.equal(net.convert({TABLE: flat}, net)[TABLE], expected)
    assert torch.equal(net.convert({TABLE: expected}, net)[TABLE], expected)
    resized = F.interpolate(expected[None], (47, 47), mode='bilinear')[0]
    larger = small('coatnet_0', img_size=384)
    for layout in (flat, expected):
        torch.testing.assert_close(larger.convert({TABLE: layout}, larger)[TABLE], resized)


def test_partial_windows_average_what_they_hold():
    x = torch.arange(15.).view(1, 1, 3, 5)
    expected = torch.tensor([[3., 5., 6.5], [10.5, 12.5, 14.]])
    assert torch.equal(POOLS['avg'](x)[0, 0], expected)
    assert POOLS['max'](x)[0, 0].tolist() == [[6., 8., 9.], [11., 13., 14.]]


def test_cases():
    size = (192, 320)
    assert CoAtNet.reference('coatnet_1_rw', size) == dict(
        arch='coatnet_1_rw', out_norm=False, img_size=size)
    options = CoAtNet.reference('coatnet_2-tfblocks_paper-resized_bias', size)
    assert options['img_size'] == 224 and options['stride'] == 'expand'
    with pytest.raises(UserError, match="no setting 'tfblock'; did you mean tfblocks"):
        CoAtNet.reference('coatnet_0-tfblock', size)


@pytest.mark.parametrize('setting, message', [
    (dict(norm='group'), "CoAtNet has no norm 'group'. Known: batch, layer"),
    (dict(mlp_act='gelo'), "no mlp_act 'gelo'; did you mean gelu"),
    (dict(stride='depthwize'), "MBConv has no stride 'depthwize'; did you mean depthwise"),
    (dict(pool='mean'), "MBConv has no pool 'mean'; did you mean max or max3"),
    (dict(dims=(64, 128, 200, 512)), 'heads of 32 channels; 200 are no multiple'),
])
def test_mistakes(setting, message):
    with pytest.raises(UserError, match=message):
        create('coatnet_0', **setting)
