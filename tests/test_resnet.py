"""What is ResNet's own: torchvision's numbers under torchvision's names."""
import pytest
import torch
import torchvision

from backbones import UserError, create
from backbones.checkpoint import load_pretrained
from backbones.resnet import ResNet


def theirs(name):
    """torchvision's network, its norms away from 0 and 1, and its maps."""
    torch.manual_seed(0)
    net = getattr(torchvision.models, name)().eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                torch.nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                torch.nn.init.normal_(tensor, std=0.1)
    layers = {f'layer{i}': i for i in (1, 2, 3, 4)}
    return net, torchvision.models._utils.IntermediateLayerGetter(net, layers)


@pytest.mark.parametrize('name', ['resnet18', 'resnet50'])
def test_equals_torchvision(name, tmp_path):
    net, maps = theirs(name)
    torch.save(net.state_dict(), tmp_path / f'{name}.pth')
    ours = create(name).eval()
    own = len(ours.state_dict())
    report = load_pretrained(ours, tmp_path / f'{name}.pth')
    assert report.startswith(f'loaded {own} of {own} tensors, 100.0% of the parameters')
    x = torch.randn(1, 3, 97, 131)
    with torch.no_grad():
        expected = list(maps(x).values())
        outputs = ours(x)
    assert tuple(output.shape[1] for output in outputs) == ours.out_channels
    for output, other in zip(outputs, expected, strict=True):
        assert output.shape == other.shape
        assert (output - other).abs().max() / other.std() < 1e-5


def test_parameters():
    with torch.device('meta'):
        millions = {arch: sum(p.numel() for p in ResNet(arch).parameters()) / 1e6
                    for arch in ResNet.archs}
    assert millions == pytest.approx(dict(resnet18=11.177, resnet34=21.285, resnet50=23.508,
                                          resnet101=42.500), abs=1e-3)


def test_layer_ids():
    net = create('resnet34')
    ids = {name: net.layer_id(name) for name, _ in net.named_parameters()}
    assert net.num_layers == 3 + 4 + 6 + 3
    assert ids['conv1.weight'] == ids['bn1.bias'] == 0
    assert ids['layer1.0.conv1.weight'] == 1
    assert ids['layer2.0.downsample.0.weight'] == ids['layer2.0.bn2.weight'] == 4
    assert ids['layer4.2.bn2.bias'] == 16
    assert set(ids.values()) == set(range(17))


def test_detection_setting():
    """Frozen to the first stage, statistics fixed: what detection configs ask for."""
    net = create('resnet18', frozen_stages=1, norm_eval=True).train()
    frozen = {name.split('.')[0] for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {'conv1', 'bn1', 'layer1'}
    before = {name: value.clone() for name, value in net.named_buffers()}
    sum(output.sum() for output in net(torch.randn(2, 3, 64, 96))).backward()
    assert all(torch.equal(before[name], value) for name, value in net.named_buffers())
    assert net.layer2[0].conv1.weight.grad is not None
    assert net.layer2.training and not net.layer2[0].bn1.training and not net.layer1.training


def test_drop_path_only_on_request():
    rates = [module.drop_prob for module in create('resnet18', drop_path_rate=0.2).modules()
             if type(module).__name__ == 'DropPath']
    assert rates == pytest.approx([0.2 * i / 7 for i in range(1, 8)])
    assert not any(type(module).__name__ == 'DropPath' for module in create('resnet18').modules())


def test_arch_as_dict():
    net = ResNet(dict(block='bottleneck', depths=(1, 1)), out_indices=(1,))
    assert net.out_channels == (512,) and not hasattr(net, 'layer3')
    with pytest.raises(UserError, match="no block 'bottle'.*did you mean bottleneck"):
        ResNet('resnet50', block='bottle')
