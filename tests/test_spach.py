"""What is SPACH's own: its formula at any shape, and networks tied to one image size."""
import math

import pytest
import torch
import torch.nn.functional as F

from backbones import UserError, create
from backbones.checkpoint import load_pretrained
from backbones.spach import SPACH, Block, MixingBlock, PositionMlp

HYBRID = dict(depths=(1, 2, 2), dim=16, mlp_ratio=3, stem='conv1', mixing='attn',
              mixed=(0, 1, 2), heads=2, img_size=None)
MLP = {**HYBRID, 'mixing': 'mlp', 'img_size': (64, 96)}
OFFICIAL = (('.cpe.', '.cpe_net.net.1.'), ('.0.conv.', '.0.net.1.0.'),
            ('.0.norm.', '.0.net.1.1.'), ('out_norm3.', 'norm2.'))


def build(arch, **options):
    """A network whose every parameter matters: none is at 0 or 1."""
    torch.manual_seed(0)
    options = {'out_indices': (0, 1, 2), **options}
    net = SPACH(arch, **options).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.2)
    return net


def images(height, width, batch=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def patches(x, side):
    """C x H x W -> H/side x W/side x (C * side**2), whole patches only."""
    channels, height, width = x.shape
    x = x[:, :height // side * side, :width // side * side]
    x = x.reshape(channels, height // side, side, width // side, side)
    return x.permute(1, 3, 0, 2, 4).flatten(2)


def normed(x, norm, axes, eps):
    """By its definition, over the last axes of H x W x C."""
    x = x - x.mean(axes, keepdim=True)
    return x / (x.square().mean(axes, keepdim=True) + eps).sqrt() * norm.weight + norm.bias


def attention(layer, x):
    """Head by head over N x C tokens."""
    q, k, v = (part.chunk(layer.heads, 1) for part in layer.qkv(x).chunk(3, 1))
    heads = [(a @ b.T / math.sqrt(a.shape[1])).softmax(1) @ c for a, b, c in zip(q, k, v)]
    return layer.proj(torch.cat(heads, 1))


def position_mlp(layer, x):
    """Channel by channel over N x C tokens."""
    return torch.stack([layer.fc2(F.gelu(layer.fc1(channel))) for channel in x.T], 1)


def textbook(net, image):
    """Outputs of one image, straight from the spec's words."""
    x = patches(image, 4) @ net.stem.proj.weight.flatten(1).T + net.stem.proj.bias
    x = normed(x, net.norm1, -1, 1e-6)
    outputs = []
    for stage in range(3):
        for module in net.get_submodule(f'layer{stage + 1}'):
            if not isinstance(module, Block):
                x = patches(x.permute(2, 0, 1), 2) @ module.conv.weight.flatten(1).T
                x = normed(x, module.norm, (0, 1, 2), 1e-5)
                continue
            near = F.pad(x, (0, 0, 1, 1, 1, 1))
            total = x + module.cpe.bias
            for dy in range(3):
                for dx in range(3):
                    total = total + (near[dy:dy + x.shape[0], dx:dx + x.shape[1]]
                                     * module.cpe.weight[:, 0, dy, dx])
            if isinstance(module, MixingBlock):
                mix = position_mlp if isinstance(module.spatial_func, PositionMlp) else attention
                tokens = normed(x, module.norm1, -1, 1e-6).flatten(0, 1)
                total = total + module.gamma_1 * mix(module.spatial_func, tokens).view_as(x)
            mlp = module.channel_func
            x = total + mlp.fc2(F.gelu(mlp.fc1(normed(total, module.norm2, -1, 1e-6))))
        outputs.append(normed(x, net.get_submodule(f'out_norm{stage}'), -1, 1e-6).permute(2, 0, 1))
    return outputs


@pytest.mark.parametrize(('arch', 'size'), [
    (HYBRID, (97, 131)), (HYBRID, (33, 65)), (HYBRID, (64, 160)), (MLP, (64, 96))])
def test_equals_the_textbook(arch, size):
    net = build(arch).double()
    batch = images(*size, batch=2).double()
    with torch.no_grad():
        for output, *expected in zip(net(batch), *(textbook(net, image) for image in batch)):
            torch.testing.assert_close(output, torch.stack(expected))


def test_four_convolutions_round_up_only_once():
    net = create('spach_ms_hybrid_s_plus', out_indices=(0,)).eval()
    assert net.size_rule == 'either'
    with torch.no_grad():
        shapes = {side: net(images(side, 64))[0].shape[2:] for side in (64, 97, 66, 131)}
    assert shapes == {64: (16, 16), 97: (24, 16), 66: (16, 16), 131: (33, 16)}


def test_the_convolution_is_never_dropped():
    block = MixingBlock(8, 2, 1., torch.nn.Linear(8, 8)).train()
    x = torch.randn(2, 5, 7, 8)
    expected = x + block.cpe(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(block(x), expected)
    assert (block.eval()(x) - expected).abs().max() > 1e-3


def test_position_mlp_means_the_same_on_another_map():
    """Smooth maps through smooth weights: both sides of resampling agree, but for its error."""
    def grid(height, width):
        axes = ((torch.arange(side) + 0.5) / side for side in (height, width))
        return torch.stack(torch.meshgrid(*axes, indexing='ij'), -1).flatten(0, 1)

    def smooth(points, outputs, seed):
        generator = torch.Generator().manual_seed(seed)
        waves = torch.randn(2, outputs, generator=generator) * 2
        return torch.cos(points @ waves + torch.randn(outputs, generator=generator))

    old, new = grid(28, 28), grid(40, 24)
    trained, other = PositionMlp((28, 28), 28), PositionMlp((40, 24), 28)
    with torch.no_grad():
        trained.fc1.weight.copy_(smooth(old, 392, 1).T / 100)
        trained.fc2.weight.copy_(smooth(old, 392, 2) / 20)
        trained.fc2.bias.copy_(smooth(old, 1, 3)[:, 0])
        other.load_state_dict({
            'fc1.weight': other.fit(trained.fc1.weight, 1, summed=True),
            'fc1.bias': trained.fc1.bias,
            'fc2.weight': other.fit(trained.fc2.weight, 0, summed=False),
            'fc2.bias': other.fit(trained.fc2.bias, 0, summed=False)})
        ours = other(smooth(new, 5, 4).view(1, 40, 24, 5))
        theirs = trained(smooth(old, 5, 4).view(1, 28, 28, 5)).permute(0, 3, 1, 2)
    theirs = F.interpolate(theirs, (40, 24), mode='bicubic').permute(0, 2, 3, 1)
    assert (ours - theirs).abs().max() < 0.02 * theirs.std()


def official(net):
    """A checkpoint of ``net`` as the authors write it, with the classifier."""
    state = net.state_dict()
    for ours, theirs in OFFICIAL:
        state = {name.replace(ours, theirs): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith('out_norm')}
    return dict(model={**state, 'head.weight': torch.randn(10, 4), 'head.bias': torch.randn(10)})


def test_official_checkpoint(tmp_path):
    net = build('ms_mlp_xxs', out_indices=(0, 1, 2, 3))
    torch.save(official(net), tmp_path / 'official.pth')
    torch.save(net.state_dict(), tmp_path / 'ours.pth')
    fresh = SPACH('ms_mlp_xxs')
    report = load_pretrained(fresh, tmp_path / 'official.pth')
    assert '100.0%' in report and report.endswith(
        'not in it: out_norm0.weight, out_norm0.bias, out_norm1.weight, out_norm1.bias, ...')
    assert torch.equal(fresh.out_norm3.weight, net.out_norm3.weight)
    assert 'not in it' not in load_pretrained(fresh, tmp_path / 'ours.pth')
    assert all(map(torch.equal, fresh.state_dict().values(), net.state_dict().values()))
    cropped = SPACH('ms_mlp_xxs', img_size=(160, 224), init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'official.pth')))
    cropped.init_weights()
    mixing = cropped.layer3[1].spatial_func
    assert mixing.fc2.weight.shape == (10 * 14, 98)
    assert mixing.fc1.weight.sum().item() == pytest.approx(
        net.layer3[1].spatial_func.fc1.weight.sum().item(), rel=0.05)
    assert cropped.eval()(images(160, 224))[3].shape == (1, 512, 5, 7)


def test_layers():
    net = SPACH('ms_hybrid_xs', out_indices=(0, 3))
    assert net.num_layers == 22
    layers = {name: net.layer_id(name) for name, _ in net.named_parameters()}
    for name, layer in {'stem.proj.bias': 0, 'norm1.weight': 0, 'layer1.0.cpe.bias': 1,
                        'layer1.2.cpe.bias': 3, 'layer2.0.conv.weight': 4,
                        'layer2.1.norm2.bias': 4, 'layer2.4.norm2.bias': 7,
                        'layer3.0.norm.bias': 8, 'layer4.2.gamma_1': 21,
                        'layer4.3.gamma_1': 22, 'out_norm0.bias': 23}.items():
        assert layers[name] == layer, name


def test_one_image_size():
    net = create('spach_ms_mlp_xxs')
    assert net.size == (224, 224)
    with pytest.raises(UserError, match='224 x 224 only, got 64 x 96.*pass img_size'):
        net(images(64, 96))
    assert SPACH('ms_mlp_xxs', img_size=64).size == (64, 64)
    assert SPACH('ms_trans_xxs').size is None
    stem = SPACH('ms_mlp_xxs', out_indices=(0,))
    assert stem.size is None and stem(images(33, 65))[0].shape == (1, 64, 8, 16)


def test_errors():
    with pytest.raises(UserError, match='multiples of 32, got 100'):
        SPACH('ms_mlp_xxs', img_size=100)
    with pytest.raises(UserError, match='leave it None'):
        SPACH('ms_conv_xxs', img_size=512)
    with pytest.raises(UserError, match="no mixing 'attention'; did you mean attn"):
        SPACH(mixing='attention')
    with pytest.raises(UserError, match="no stem 'conv3'"):
        SPACH(stem='conv3')
