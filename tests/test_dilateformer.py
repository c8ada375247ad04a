"""DilateFormer's attention: the formula, the borders, the memory."""
import pytest
import torch

from backbones.dilateformer import GlobalAttention, MultiDilatedAttention, dilated_attention
from suite.attention import case, compare
from suite.attention.dilateformer import unfold_attention
from suite.speed import measure, peak_bytes


def naive(q, k, v, heads, dilation):
    """One position, one head, one neighbour at a time."""
    _, channels, height, width = q.shape
    size = channels // heads
    out = torch.zeros_like(q)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for y in range(height):
            for x in range(width):
                logits, values = [], []
                for dy in (-dilation, 0, dilation):
                    for dx in (-dilation, 0, dilation):
                        inside = 0 <= y + dy < height and 0 <= x + dx < width
                        key = k[0, part, y + dy, x + dx] if inside else torch.zeros(size)
                        values.append(v[0, part, y + dy, x + dx] if inside else torch.zeros(size))
                        logits.append(q[0, part, y, x] @ key * size ** -0.5)
                out[0, part, y, x] = torch.stack(logits).softmax(0) @ torch.stack(values)
    return out


@pytest.mark.parametrize('dilation', [1, 2, 3])
@pytest.mark.parametrize('form', [dilated_attention, unfold_attention])
def test_attention_is_the_formula_borders_included(form, dilation):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 6, 5, 7).unbind()
    torch.testing.assert_close(form(q, k, v, 2, dilation), naive(q, k, v, 2, dilation),
                               atol=1e-6, rtol=1e-5)


def test_a_neighbour_outside_the_map_keeps_its_share_of_the_softmax():
    """One pixel, all eight neighbours outside: logits 0, values 0, one ninth remains."""
    one = torch.ones(1, 4, 1, 1)
    out = dilated_attention(torch.zeros(1, 4, 1, 1), one, 9 * one, 1, 1)
    torch.testing.assert_close(out, one)


def test_heads_take_their_dilations_in_order():
    """A spot in the values of a group is seen at the distance of that group alone."""
    layer = MultiDilatedAttention(6, 3, (1, 2, 3))
    with torch.no_grad():
        layer.qkv.weight.zero_()
        layer.qkv.weight[12:, :, 0, 0] = torch.eye(6)
        layer.qkv.bias.zero_()
        layer.proj.weight.copy_(torch.eye(6))
        layer.proj.bias.zero_()
    spot = torch.zeros(1, 9, 9, 6)
    spot[0, 4, 4] = 1
    seen = layer(spot)[0]
    for group, distance in enumerate((1, 2, 3)):
        rows, columns = torch.nonzero(seen[..., 2 * group], as_tuple=True)
        assert sorted(set((rows - 4).abs().tolist())) == [0, distance]
        assert sorted(set((columns - 4).abs().tolist())) == [0, distance]


def test_ours_equals_the_textbook_form_and_takes_a_third_of_its_memory():
    found = compare(case('dilateformer', 160, 224), repeats=1)
    assert found.difference < 1e-5
    assert found.memory_forward < 1 / 3
    assert found.memory_both < 1 / 3

def test_global_attention_never_holds_the_square_matrix():
    layer, x = GlobalAttention(48, 2), torch.randn(1, 64, 64, 48)
    square = 2 * (64 * 64) ** 2 * 4
    assert peak_bytes(lambda: layer(x)) < square / 10
    assert peak_bytes(lambda: layer(x).sum().backward()) < square / 10


def test_peak_bytes_counts_what_is_held_at_once():
    def call():
        a = torch.zeros(1000, 256)
        b = a + 1
        del a
        return b * 2
    assert peak_bytes(call) == pytest.approx(2 * 1000 * 256 * 4, rel=0.01)


def test_measure_orders_percentiles():
    timing, = measure([lambda: sum(range(1000))], repeats=5)
    assert 0 < timing.p10 <= timing.median <= timing.p90
