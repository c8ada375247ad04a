"""What is DeiT's own: timm's network at sizes that it was not built for, positions, names."""
import pytest
import timm
import torch
import torch.nn.functional as F
from networks import stirred

from backbones import UserError
from backbones.checkpoint import load_pretrained
from backbones.deit import DeiT

SMALL = dict(dim=24, depths=(1, 1, 2, 1), heads=3, img_size=64)


def theirs(size):
    net = timm.models.VisionTransformer(img_size=size, embed_dim=24, depth=5, num_heads=3,
                                        num_classes=10, patch_size=16)
    return stirred(net)


def resampled(positions, size):
    """Of a square grid for one of another size, as the sheet has it."""
    grid = positions[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size, mode='bicubic').flatten(2).transpose(1, 2)
    return torch.cat([positions[:, :1], grid], 1)


@pytest.mark.parametrize('size, padded', [((64, 64), (64, 64)), ((96, 160), (96, 160)),
                                          ((65, 90), (96, 96))])
@torch.no_grad()
def test_maps_are_timms(size, padded):
    """The last blocks of the quarters, of an image with zeros below and to the right."""
    net = DeiT(SMALL, pyramid=False).eval()
    official, at_size = theirs((64, 64)), theirs(padded)
    net.load_state_dict(net.convert(official.state_dict(), net))
    state = official.state_dict()
    grid = [side // 16 for side in padded]
    at_size.load_state_dict({**state, 'pos_embed': resampled(state['pos_embed'], grid)})
    x = torch.randn(2, 3, *size)
    image = F.pad(x, (0, padded[1] - size[1], 0, padded[0] - size[0]))
    expected = at_size.forward_intermediates(image, indices=[0, 1, 3, 4], norm=False,
                                             intermediates_only=True)
    rows, columns = -(-size[0] // 16), -(-size[1] // 16)
    for y, wanted in zip(net(x), expected, strict=True):
        torch.testing.assert_close(y, wanted[..., :rows, :columns], atol=1e-4, rtol=1e-4)
    assert net.out_strides == (16,) * 4


@torch.no_grad()
def test_pyramid_is_made_of_the_maps():
    net = stirred(DeiT(SMALL))
    raw = stirred(DeiT(SMALL, pyramid=False))
    raw.load_state_dict(net.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 96)
    first, second, third, fourth = raw(x)
    outputs = net(x)
    up = net.pyramid.scales[0]
    bn = F.batch_norm(F.conv_transpose2d(first, up[0].weight, up[0].bias, 2), up[1].running_mean,
                      up[1].running_var, up[1].weight, up[1].bias)
    torch.testing.assert_close(outputs[0], F.conv_transpose2d(
        F.gelu(bn), up[3].weight, up[3].bias, 2), atol=1e-4, rtol=1e-4)
    up, = net.pyramid.scales[1]
    torch.testing.assert_close(outputs[1], F.conv_transpose2d(second, up.weight, up.bias, 2),
                               atol=1e-4, rtol=1e-4)
    assert torch.equal(outputs[2], third) and torch.equal(outputs[3], F.max_pool2d(fourth, 2))


def test_official_checkpoint(tmp_path):
    """Of another image size, with its classifier; the pyramid alone is ours."""
    official = theirs((96, 96))
    torch.save(dict(model=official.state_dict()), tmp_path / 'deit.pth')
    net = DeiT(SMALL)
    report = load_pretrained(net, tmp_path / 'deit.pth')
    assert '100.0% of the parameters' in report and report.endswith('; not in it: pyramid.*')
    table = official.pos_embed[:, 1:].unflatten(1, (6, 6)).permute(0, 3, 1, 2)
    expected = F.interpolate(table, (4, 4), mode='bicubic').flatten(2).transpose(1, 2)
    torch.testing.assert_close(net.pos_embed[:, 1:], expected)
    assert torch.equal(net.pos_embed[:, :1], official.pos_embed[:, :1])
    assert net.no_weight_decay() == {'cls_token', 'pos_embed'}


def test_mistakes(tmp_path):
    torch.save(dict(theirs((64, 64)).state_dict(), dist_token=torch.ones(1, 1, 24)),
               tmp_path / 'distilled.pth')
    with pytest.raises(UserError, match='distilled network'):
        load_pretrained(DeiT(SMALL), tmp_path / 'distilled.pth')
    with pytest.raises(UserError, match='img_size must be a multiple of 16, got 100'):
        DeiT('tiny', img_size=100)


def test_variants():
    with torch.device('meta'):
        counts = {arch: sum(p.numel() for p in DeiT(arch, pyramid=False).parameters())
                  for arch in DeiT.archs}
    # Classifiers' with a norm and 1000 classes: 5.7, 22.1, 86.6 M.
    assert counts == dict(tiny=5_717_416 - 384 - 193_000, small=22_050_664 - 768 - 385_000,
                          base=86_567_656 - 1_536 - 769_000)
