"""What tests of single systems share: networks away from their initialisation, the names of
other projects, and timm as the reference."""
from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def stirred(net: nn.Module) -> nn.Module:
    """A network in eval mode, no parameter of which is at 0 or 1."""
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.3)
    return net.eval()


def renamed(net: nn.Module, patterns: dict[str, str]) -> dict[str, Tensor]:
    """A network's state under other names: regular expressions and what they become, in turn."""
    state = {}
    for name, tensor in net.state_dict().items():
        for pattern, new in patterns.items():
            name = re.sub(pattern, new, name)
        state[name] = tensor
    return state


@torch.no_grad()
def difference_to_timm(ours: nn.Module, theirs: nn.Module) -> float:
    """The largest at three sizes, between our maps and timm's behind a LayerNorm per pixel."""
    largest = 0.
    for size in [(97, 131), (33, 65), (224, 64)]:
        x = torch.randn(2, 3, *size)
        for output, raw in zip(ours(x), theirs.forward_intermediates(x, intermediates_only=True),
                               strict=True):
            normed = F.layer_norm(raw.permute(0, 2, 3, 1), raw.shape[1:2], eps=1e-6)
            largest = max(largest, (output - normed.permute(0, 3, 1, 2)).abs().max().item())
    return largest
