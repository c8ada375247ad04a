"""What is MobileViT's own: its sequences, timm's network at awkward sizes, its names."""
import pytest
import timm
import torch
from networks import stirred

from backbones import UserError
from backbones.checkpoint import load_pretrained
from backbones.mobilevit import MobileViT, from_places, to_places


def test_pixels_meet_at_equal_places_of_their_patches():
    x = torch.arange(2 * 4 * 6.).view(2, 4, 6, 1)
    t = to_places(x)
    assert t.shape == (8, 6, 1)
    for i, sequence in enumerate(t):
        image, row, column = i // 4, i // 2 % 2, i % 2
        assert torch.equal(sequence.view(2, 3), x[image, row::2, column::2, 0])
    assert torch.equal(from_places(t, (4, 6)), x)


@pytest.mark.parametrize('arch', ['xxs', 'xs', 's'])
@torch.no_grad()
def test_is_timms(arch, tmp_path):
    """All five maps, by timm's weights, at even and odd sizes."""
    official = timm.create_model(f'mobilevit_{arch}', num_classes=10)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in official.state_dict().items():
        if name.endswith('running_var'):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.ndim == 1:
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    torch.save(official.eval().state_dict(), tmp_path / 'timm.pth')
    net = MobileViT(arch, out_indices=(0, 1, 2, 3, 4)).eval()
    assert 'not in it' not in load_pretrained(net, tmp_path / 'timm.pth')
    maps = []
    for module in (*official.stages[1:], official.final_conv):
        module.register_forward_hook(lambda _, __, output: maps.append(output))
    for size in [(64, 96), (97, 131), (33, 65)]:
        x = torch.randn(2, 3, *size)
        maps.clear()
        official.forward_features(x)
        for ours, theirs in zip(net(x), maps, strict=True):
            assert (ours - theirs).abs().max() < 1e-4 * theirs.std()
    assert net.out_channels == tuple(y.shape[1] for y in maps)
    assert net.out_strides == (4, 8, 16, 32, 32)


def test_only_what_takes_part():
    def parts(*out_indices):
        return {'.'.join(name.split('.')[:2]) for name in
                MobileViT(out_indices=out_indices).state_dict() if name[:2] in ('st', 'fi')}
    assert parts(0) == {'stem.conv', 'stem.bn', 'stages.0', 'stages.1'}
    assert parts(3) - parts(2) == {'stages.4'}
    assert parts(4) - parts(3) == {'final_conv.conv', 'final_conv.bn'}


@pytest.mark.parametrize('name, stage, layer', [
    ('stem.conv.weight', 0, 0), ('stages.0.0.conv1_1x1.conv.weight', 0, 0),
    ('stages.1.2.conv3_1x1.bn.weight', 1, 3), ('stages.2.0.conv2_kxk.conv.weight', 2, 4),
    ('stages.2.1.conv_1x1.weight', 2, 4), ('stages.2.1.transformer.1.norm1.weight', 2, 5),
    ('stages.2.1.norm.weight', 2, 5), ('stages.3.1.conv_fusion.conv.weight', 3, 9),
    ('stages.4.1.transformer.2.mlp.fc1.weight', 4, 12), ('final_conv.bn.bias', 5, 13)])
def test_layers(name, stage, layer):
    with torch.device('meta'):
        net = MobileViT()
    assert name in dict(net.named_parameters()) and net.num_layers == 12
    assert (net.stage_id(name), net.layer_id(name)) == (stage, layer)


@torch.no_grad()
def test_drop_path_grows_over_the_transformers():
    net = MobileViT(drop_path_rate=0.4, out_indices=(1, 2))
    rates = [module.drop_prob for name, module in net.named_modules()
             if name.endswith('.drop_path')]
    assert rates == pytest.approx([0., 0.05, 0.1, 0.15, 0.2, 0.25])
    stirred(net)(torch.randn(1, 3, 64, 64))


def test_mistakes():
    with pytest.raises(UserError, match='depths must be four numbers and.* a 0'):
        MobileViT(depths=(3, 2, 4, 3, 1))
