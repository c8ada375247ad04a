"""FCViT, the Fully Convolutional Vision Transformer (Ma et al., 2022), arXiv 2212.12552.

Attention taken apart into convolutions: every pixel gets a vector made of the map's mean, by
how much it resembles that mean (a "global context", eight heads), then 11 x 11 depthwise
convolutions mix neighbours; twice per block. No attention matrix, no position encoding. Norms
are GroupNorms of one group, over channels and the whole map: like the contexts, they see the
padding of a batch. Sizes round up.

Official code: ma-xu/FCViT; this is the network of its detection and segmentation code, with
a fresh norm on every output. Same names and numbers. Differs from it: layer scales start at 1,
not at 1e-6, so that blocks count from the first step of a run from scratch (checkpoints
overwrite them); on the CPU the gradients of wide kernels take a faster way (training at
512 x 512: tiny 1.7, b12 1.5 times as fast).

variant  parameters  GMACs 224    512  800x1280  ImageNet-1K top-1 (published)
tiny          4.5 M       0.90    4.7      18.4  74.9
b12          14.2 M       2.65   13.8      54.0  80.9
b24          26.4 M       5.06   26.4     103.3  82.5
b48          51.0 M       9.89   51.7     201.8  83.6

The README states 4 to 5 % fewer parameters than its code has, classifiers included: the
released weights may be of another setting. One that differs in the width of its kernels loads
with ``kernel=``.

Published with b12, b24: Mask R-CNN 42.3, 44.1 box, 38.6, 39.9 mask AP (1x); Semantic FPN
43.3, 45.5 mIoU (README of ma-xu/FCViT). UperNet, Cascade Mask R-CNN: nothing found.
"""
from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

from .base import Backbone
from .errors import UserError
from .layers import DepthwiseConv2d
from .registry import register

HEADS = 8  # of every global context

_PART = re.compile(r'network\.(\d)\.(?:(\d+)\.)?')
_VECTORS = ('.layer_scale_1', '.layer_scale_2', '.rescale_weight', '.rescale_bias')


class MapNorm(nn.GroupNorm):
    """GroupNorm of one group: over channels and the whole map. B x C x H x W."""

    def __init__(self, dim: int):
        super().__init__(1, dim)

    def forward(self, x: Tensor) -> Tensor:
        # PyTorch 2.12 crashes in the backward pass of a channels-last map that needs no gradient
        # itself, as behind frozen stages.
        if torch.is_grad_enabled() and not x.requires_grad:
            x = x.contiguous()
        return super().forward(x)


class GlobalContext(nn.Module):
    """Add to every pixel one vector per head, as much of it as the pixel resembles the mean
    of the map. B x C x H x W.

    The vectors come from the mean by two linear layers, between which the larger one of two
    competing halves survives.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * (dim // 8))
        self.fc2 = nn.Linear(dim // 8, dim)
        self.rescale_weight = nn.Parameter(torch.ones(HEADS))
        self.rescale_bias = nn.Parameter(torch.zeros(HEADS))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3))
        context = self.fc2(self.fc1(mean).unflatten(1, (2, -1)).amax(1))
        mean, context = (t.view(len(x) * HEADS, -1) for t in (mean, context))
        heads = x.reshape(*mean.shape, -1)
        similarity = mean[:, None] @ heads * mean.shape[1] ** -0.5
        similarity = self.standardise(similarity.view(len(x), HEADS, -1))
        return torch.baddbmm(heads, context[..., None], similarity.view(len(mean), 1, -1)
                             ).view(x.shape)

    def standardise(self, similarity: Tensor) -> Tensor:
        """To mean 0 and deviation 1 over all heads and pixels of an image, then rescaled by
        head. B x heads x (H * W)."""
        deviation, mean = torch.std_mean(similarity, (1, 2), keepdim=True)
        gain = self.rescale_weight[:, None] / (deviation + 1e-5)
        return (similarity - mean) * gain + self.rescale_bias[:, None]


class TokenMixer(nn.Module):
    """Twice: global context, wide depthwise convolution, bottleneck. B x C x H x W."""

    def __init__(self, dim: int, kernel: int):
        super().__init__()

        def bottleneck() -> nn.Sequential:
            narrow = max(dim // 8, 16)
            return nn.Sequential(nn.Conv2d(dim, narrow, 1), nn.GELU(), nn.Conv2d(narrow, dim, 1))

        self.gc1 = GlobalContext(dim)
        self.dw1 = DepthwiseConv2d(dim, kernel)
        self.fc1 = bottleneck()
        self.gc2 = GlobalContext(dim)
        self.dw2 = DepthwiseConv2d(dim, kernel)
        self.fc2 = bottleneck()
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.fc1(self.dw1(self.gc1(x))))
        return self.act(self.fc2(self.dw2(self.gc2(x))))


class ChannelMixer(nn.Module):
    """MLP with a depthwise convolution before its activation. B x C x H x W."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.dwconv = DepthwiseConv2d(hidden, 3)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.dwconv(self.fc1(x))))


class Block(nn.Module):
    """Token mixer and channel mixer, each behind a norm, scaled, with a skip. B x C x H x W."""

    def __init__(self, dim: int, hidden: int, kernel: int, layer_scale: float, drop_path: float):
        super().__init__()
        self.norm1 = MapNorm(dim)
        self.token_mixer = TokenMixer(dim, kernel)
        self.norm2 = MapNorm(dim)
        self.channel_mixer = ChannelMixer(dim, hidden)
        self.layer_scale_1 = nn.Parameter(torch.full((dim,), float(layer_scale)))
        self.layer_scale_2 = nn.Parameter(torch.full((dim,), float(layer_scale)))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.add(x, self.layer_scale_1, self.token_mixer(self.norm1(x)))
        return self.add(x, self.layer_scale_2, self.channel_mixer(self.norm2(x)))

    def add(self, x: Tensor, scale: Tensor, branch: Tensor) -> Tensor:
        # Dropping a sample's scale drops its path, and is no pass over its map.
        kept = self.drop_path(x.new_ones(len(x), 1, 1, 1))
        return torch.addcmul(x, branch, scale[:, None, None] * kept)


class PatchEmbed(nn.Module):
    """Overlapping patches of twice the stride less one, and a BatchNorm; sizes round up."""

    def __init__(self, inputs: int, dim: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(inputs, dim, 2 * stride - 1, stride, padding=stride - 1)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x))


class FCViT(Backbone):
    """FCViT as a dense backbone, strides 4, 8, 16, 32.

    Args:
        arch: 'tiny', 'b12', 'b24', 'b48', or a dict of dims (multiples of 8), depths,
            mlp_ratios, kernel.
        drop_path_rate: of the last block; grows linearly from 0.
        layer_scale: what the layer scales start at.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
    """

    added = ('norm',)

    def __init__(self, arch: str | dict = 'tiny', out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.1, layer_scale: float = 1., frozen_stages: int = -1,
                 norm_eval: bool = False, with_cp: bool = False, init_cfg: dict | None = None,
                 **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        if any(dim % HEADS for dim in arch['dims']):
            raise UserError(f'FCViT: dims must be multiples of {HEADS}, got '
                            f'{tuple(arch["dims"])}')
        last = self.out_indices[-1]
        self.depths = arch['depths'][:last + 1]
        dims = arch['dims'][:last + 1]
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)

        rates = iter(torch.linspace(0, drop_path_rate, sum(arch['depths']), device='cpu').tolist())
        self.patch_embed = PatchEmbed(3, dims[0], 4)
        self.network = nn.ModuleList()
        for stage, (dim, depth, ratio) in enumerate(zip(dims, self.depths, arch['mlp_ratios'])):
            if stage:
                self.network.append(PatchEmbed(dims[stage - 1], dim, 2))
            self.network.append(nn.ModuleList(
                Block(dim, ratio * dim, arch['kernel'], layer_scale, next(rates))
                for _ in range(depth)))
        for i, dim in zip(self.out_indices, self.out_channels):
            self.add_module(f'norm{2 * i}', MapNorm(dim))

        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                nn.init.zeros_(module.bias)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if x.is_cpu:
            # Better for the channel mixers there; contexts bring maps back to the other layout,
            # which is better for the wide convolutions.
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.patch_embed(x)
        outputs = []
        for i in range(len(self.depths)):
            if i:
                x = self.network[2 * i - 1](x)
            for block in self.network[2 * i]:
                x = self.run(block, x)
            if i in self.out_indices:
                outputs.append(self.get_submodule(f'norm{2 * i}')(x).contiguous())
        return tuple(outputs)

    def stage_id(self, name: str) -> int:
        """A stage begins with the patch embedding before its blocks, the first without."""
        if match := _PART.match(name):
            return (int(match[1]) + 1) // 2 + 1
        return 0 if name.startswith('patch_embed.') else len(self.depths) + 1

    def layer_id(self, name: str) -> int:
        """The patch embedding of a later stage counts with its first block."""
        stage = self.stage_id(name)
        if stage == 0 or stage > len(self.depths):
            return super().layer_id(name)
        block = _PART.match(name)[2] or 0
        return sum(self.depths[:stage - 1]) + int(block) + 1

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(_VECTORS)}

    @staticmethod
    def convert(state: dict[str, Tensor], net: Backbone) -> dict[str, Tensor]:
        """Official names are ours; the classifier goes, with its norm.

        Raises:
            UserError: the checkpoint has kernels of another width, or the official code's other
                kind of context, without competition, which its published settings never take.
        """
        if any('.gc1.fc.' in name for name in state):
            raise UserError('FCViT: the checkpoint has global contexts without competition '
                            '(gc1.fc), which are not built here')
        name = 'network.0.0.token_mixer.dw1.weight'
        own = net.get_parameter(name).shape[-1]
        if name in state and state[name].shape[-1] != own:
            raise UserError(f'FCViT: the checkpoint has kernels of {state[name].shape[-1]} pixels, '
                            f'the network of {own}; build it with kernel={state[name].shape[-1]}')
        return {name: tensor for name, tensor in state.items()
                if not name.startswith(('norm.', 'head.'))}


_BASE = dict(mlp_ratios=(8, 8, 4, 4), kernel=11)
ARCHS = dict(
    tiny=dict(dims=(32, 64, 160, 320), depths=(3, 3, 5, 2), **_BASE),
    b12=dict(dims=(64, 128, 320, 512), depths=(2, 2, 6, 2), **_BASE),
    b24=dict(dims=(64, 128, 320, 512), depths=(4, 4, 12, 4), **_BASE),
    b48=dict(dims=(64, 128, 320, 512), depths=(8, 8, 24, 8), **_BASE),
)
register(FCViT, ARCHS)
