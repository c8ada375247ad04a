"""Counted work equals what is counted by hand, attention included."""
import torch
import torch.nn.functional as F
from torch import nn

from backbones.dilateformer import MultiDilatedAttention
from suite.complexity import count, of_backbone
from suite.latency import compare


class SelfAttention(nn.Module):
    """Two heads of 4 channels over all positions of an 8-channel image."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 1, bias=False)

    def forward(self, x):
        t = self.embed(x).unflatten(1, (2, 4)).flatten(3).transpose(2, 3)
        return F.scaled_dot_product_attention(t, t, t)


class Dilated(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 1, bias=False)
        self.attention = MultiDilatedAttention(6, 3, (1, 2, 3))

    def forward(self, x):
        return self.attention(self.embed(x).permute(0, 2, 3, 1))


def test_convolution():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(),
                        nn.Conv2d(8, 8, 3, 2, 1, groups=4)).eval()
    found = count(net, (16, 20))
    assert found.macs == 16 * 20 * 8 * 3 * 9 + 8 * 10 * 8 * 2 * 9
    assert found.parameters == 8 * 27 + 8 + 16 + 8 * 18 + 8


def test_fused_attention_counts():
    for device in ('meta', 'cpu'):
        net = SelfAttention().to(device)
        assert count(net, (6, 5)).macs == 30 * 3 * 8 + 2 * 30 * 30 * 8


def test_elementwise_attention_counts():
    net = Dilated()
    assert count(net, (6, 5)).macs == 30 * (3 * 6 + 6 * 18 + 2 * 9 * 6 + 6 * 6)
    assert not net.attention._forward_hooks


def test_work_grows_with_the_image():
    """Convolutions alone: four times the pixels, four times the work."""
    small, large = (of_backbone('resnet18', size) for size in ((64, 96), (128, 192)))
    assert small.parameters == large.parameters
    assert large.macs == 4 * small.macs


def test_a_size_that_a_network_refuses_has_no_work():
    found = of_backbone('spach_ms_mlp_xxs', (64, 96))
    assert found.macs is None and found.parameters > 6e6


def test_latency_measures_both_passes_in_their_modes():
    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)
            self.seen = []

        def forward(self, x):
            self.seen.append((self.training, torch.is_grad_enabled()))
            return (self.conv(x),)

    nets = Spy(), Spy()
    found = compare(nets, (1, 3, 8, 8), repeats=3)
    assert list(found) == ['forward', 'forward+backward']
    for net in nets:
        assert set(net.seen) == {(False, False), (True, True)}
        assert net.conv.weight.grad is not None
    for one in [*found['forward'], *found['forward+backward']]:
        assert 0 < one.timing.p10 <= one.timing.median <= one.timing.p90
        assert one.memory >= 2 * 8 * 8 * 4
