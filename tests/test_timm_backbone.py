"""``TimmBackbone`` beyond the contract: weights, sizes, what is left out, errors."""
from __future__ import annotations

import pytest
import timm
import torch

from backbones import UserError, create
from backbones.checkpoint import load_report


def images(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('name', ['resnet18', 'convnext_atto', 'swin_tiny_patch4_window7_224'])
@torch.no_grad()
def test_timm_weights_and_maps(name):
    """timm's own weights load, and give the maps of timm's own feature extractor."""
    torch.manual_seed(0)
    official = timm.create_model(name).eval()
    net = create(f'timm/{name}').eval()
    report = load_report(net, net.convert(official.state_dict(), net), 'timm')
    assert '100.0% of the parameters' in report
    extractor = timm.create_model(name, features_only=True).eval()
    weights = {key.replace('.', '_', 1): tensor for key, tensor in official.state_dict().items()}
    extractor.load_state_dict({**official.state_dict(), **weights}, strict=False)
    x = images(224, 224)
    expected = [y if y.shape[1] == channels else y.permute(0, 3, 1, 2)
                for y, channels in zip(extractor(x)[-4:], net.out_channels)]
    for got, wanted in zip(net(x), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_timm_position_table():
    """A ViT takes the weights of one trained at another size, and any image."""
    official = timm.create_model('test_vit', img_size=320)
    net = create('timm/test_vit')
    report = load_report(net, net.convert(official.state_dict(), net), 'timm')
    assert '100.0% of the parameters' in report and 'not in it: pyramid.' in report
    assert net.body.pos_embed.shape == (1, 101, 64)
    again = create('timm/test_vit')
    assert 'not in it' not in load_report(again, again.convert(net.state_dict(), again), 'ours')


def test_timm_builds_only_what_takes_part():
    net = create('timm/resnet18', out_indices=(1, 2))
    assert net.out_channels == (64, 128) and net.out_strides == (4, 8)
    assert not any(key.startswith(('body.layer3', 'body.fc')) for key in net.state_dict())
    hrnet = create('timm/hrnet_w18_small', out_indices=(2,)).train()
    sum(y.square().mean() for y in hrnet(images(64, 96))).backward()
    assert all(p.grad is not None for p in hrnet.parameters() if p.requires_grad)


def test_timm_one_size_only():
    net = create('timm/levit_128s').eval()
    assert net.size == (224, 224) and net.out_strides == (16, 32)
    assert [y.shape[-1] for y in net(images(224, 224))] == [14, 7]
    with pytest.raises(UserError, match='224 x 224 only, got 64 x 96'):
        net(images(64, 96))


def test_timm_errors():
    with pytest.raises(UserError, match='convnext_atto'):
        create('timm/convnext_ato')
    with pytest.raises(UserError, match='stride 14.*patch_size=16'):
        create('timm/vit_small_patch14_dinov2')
    with pytest.raises(UserError, match='at strides 2/4/8/16/32'):
        create('timm/resnet18', out_indices=(5,))
    with pytest.raises(UserError, match='no activation checkpointing'):
        create('timm/dla34', with_cp=True)


def test_timm_foreign_weights():
    net = create('timm/test_vit')
    with pytest.raises(UserError, match='does not fit TimmBackbone: 0.0%.*unexpected body.conv'):
        load_report(net, net.convert({'conv.weight': torch.ones(1)}, net), 'x.pth')
    with pytest.raises(UserError, match='these weights are not those of timm model'):
        net.convert({'patch_embed.proj.weight': torch.ones(1)}, net)
