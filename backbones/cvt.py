"""CvT, the Convolutional vision Transformer (Wu et al., ICCV 2021), arXiv 2103.15808.

Three stages of global attention at strides 4, 8, 16. Overlapping convolutions make the
tokens; a depthwise 3 x 3 convolution stands before each of the projections to queries, keys
and values, and halves the map of the last two. No position encoding at all. The last stage
carries a class token along, out of which ImageNet training reads the answer.

Official code: microsoft/CvT, a classifier; nothing was published for dense tasks. Same names
and numbers, fused attention. Ours are a LayerNorm on every output (``out_norm``) and a level
of stride 32, which CvT has not: the stride-16 output, max-pooled 2 x 2. The class token stays,
though nobody reads it: pretrained patches attend to it.

variant   parameters  GMACs 224    512  800x1280  ImageNet-1K top-1 (published), at 384
cvt_13        19.6 M       4.57   35.0     293.4  81.6, 83.0; 83.3 from ImageNet-22K
cvt_21        31.2 M       7.18   52.1     410.8  82.5, 83.3; 84.9 from ImageNet-22K
cvt_w24      276.2 M      60.92  378.0    2329.0  87.6 from ImageNet-22K

At 800 x 1344 pixels the first stage weighs 67,200 queries against 16,800 keys: only fused
attention kernels train at such sizes, and cvt_w24 hardly does.
"""
from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, trunc_normal_
from torch import Tensor, nn

from .base import Backbone
from .errors import UserError
from .graftable import Graftable
from .registry import register

_STAGE = re.compile(r'stage(\d)\.')
_BLOCK = re.compile(r'stage(\d)\.blocks\.(\d+)\.')
_FROM_TRANSFORMERS = {
    r'^(cvt\.)?encoder\.stages\.': 'stage',
    r'\.embedding\.convolution_embeddings\.projection\.': '.patch_embed.proj.',
    r'\.embedding\.convolution_embeddings\.normalization\.': '.patch_embed.norm.',
    r'\.layers\.(\d+)\.': r'.blocks.\1.',
    r'\.attention\.attention\.convolution_(\w+)\.convolution_projection\.convolution\.':
        r'.attn.conv_\1.conv.',
    r'\.attention\.attention\.convolution_(\w+)\.convolution_projection\.normalization\.':
        r'.attn.conv_\1.bn.',
    r'\.attention\.attention\.projection_': '.attn.projection_',
    r'projection_(q|k|v)(?:uery|ey|alue)\.': r'proj_\1.',
    r'\.attention\.output\.dense\.': '.attn.proj.',
    r'\.intermediate\.dense\.': '.mlp.fc1.',
    r'\.output\.dense\.': '.mlp.fc2.',
    r'\.layernorm_before\.': '.norm1.',
    r'\.layernorm_after\.': '.norm2.',
    r'^layernorm\.': 'norm.',
    r'^classifier\.': 'head.',
}


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x). By SiLU, which keeps one tensor for the backward pass, not two."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(1.702 * x) / 1.702


def depthwise(dim: int, stride: int) -> nn.Sequential:
    """A 3 x 3 convolution of every channel by itself, and its norm; sizes round up."""
    return nn.Sequential(OrderedDict(
        conv=nn.Conv2d(dim, dim, 3, stride, padding=1, groups=dim, bias=False),
        bn=nn.BatchNorm2d(dim)))


class Attention(nn.Module):
    """Global multi-head attention with convolutions before its projections.

    Args:
        dim: channels C.
        heads: consecutive slices of the channels.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.conv_proj_q = depthwise(dim, 1)
        self.conv_proj_k = depthwise(dim, 2)
        self.conv_proj_v = depthwise(dim, 2)
        self.proj_q = nn.Linear(dim, dim)
        self.proj_k = nn.Linear(dim, dim)
        self.proj_v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """B x tokens x C; the last H * W tokens are a map, one before them bypasses the
        convolutions."""
        patches = math.prod(size)
        token, image = x.split((x.shape[1] - patches, patches), 1)
        image = image.transpose(1, 2).unflatten(2, size)

        def project(conv: nn.Module, linear: nn.Module) -> Tensor:
            t = conv(image).flatten(2).transpose(1, 2)
            t = torch.cat((token, t), 1) if token.shape[1] else t
            return linear(t).unflatten(-1, (self.heads, -1)).transpose(1, 2)

        out = F.scaled_dot_product_attention(
            project(self.conv_proj_q, self.proj_q),
            project(self.conv_proj_k, self.proj_k),
            project(self.conv_proj_v, self.proj_v),
            scale=x.shape[-1] ** -0.5)  # of the width, not of a head's: as the authors trained
        return self.proj(out.transpose(1, 2).flatten(2))


class Block(Graftable):
    """Attention and MLP, each behind a norm and with a skip. B x tokens x C."""

    def __init__(self, dim: int, heads: int, drop_path: float):
        super().__init__(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim, act_layer=QuickGELU)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        u = self.norm1(x)
        x = x + self.drop_path(self.attn(u, size))
        if self.graft is not None:
            x = x + self.drop_path(self.graft_tokens(u, size))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Overlapping patches: B x C x H x W -> B x H' x W' x D.

    A stride of 4 takes 7 x 7 patches, H' = (H + 1) // 4; a stride of 2 takes 3 x 3, H' = H / 2
    rounded up.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, 2 * stride - 1, stride, padding=stride // 2)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class CvT(Backbone):
    """CvT as a dense backbone, strides 4, 8, 16, and 32 by pooling.

    Args:
        arch: 'cvt_13', 'cvt_21', 'cvt_w24', or a dict of dims, heads (three), depths (four:
            the last one is 0, for the pooled level has no blocks).
        out_indices: 3 is the pooled level; it has the norm of the level that it pools.
        drop_path_rate: of the last block; grows linearly from 0 in the third stage, the other
            two have none.
        out_norm: LayerNorm on every output; the official network has none.
        frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
    """

    added = ('norm',)
    size_rule = 'either'  # the first patches round down, or up by one pixel

    def __init__(self, arch: str | dict = 'cvt_13', out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.1, out_norm: bool = True, frozen_stages: int = -1,
                 norm_eval: bool = False, with_cp: bool = False, init_cfg: dict | None = None,
                 **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        *depths, pooled = arch['depths']
        if len(depths) != 3 or pooled:
            raise UserError('CvT: depths must be three numbers of blocks and, for the pooled '
                            f'level, a 0; got {arch["depths"]}')
        # The stages behind the outputs: the pooled level stands on the third.
        self.tapped = sorted({min(i, 2) for i in self.out_indices})
        self.depths = tuple(depths[:self.tapped[-1] + 1])
        dims = arch['dims']
        self.out_channels = tuple(dims[min(i, 2)] for i in self.out_indices)
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)

        last_rates = torch.linspace(0, drop_path_rate, depths[2], device='cpu').tolist()
        for i, (inputs, dim, depth, heads) in enumerate(
                zip((3, *dims), dims, self.depths, arch['heads'])):
            rates = last_rates if i == 2 else [0.] * depth
            stage = nn.ModuleDict(dict(
                patch_embed=PatchEmbed(inputs, dim, 2 if i else 4),
                blocks=nn.ModuleList(Block(dim, heads, rate) for rate in rates)))
            if i == 2:
                stage.register_parameter('cls_token', nn.Parameter(torch.zeros(1, 1, dim)))
                trunc_normal_(stage.cls_token, std=0.02)
            self.add_module(f'stage{i}', stage)
            if i in self.tapped and out_norm:
                self.add_module(f'norm{i}', nn.LayerNorm(dim))

        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = {}
        for i in range(len(self.depths)):
            stage = self.get_submodule(f'stage{i}')
            x = stage['patch_embed'](x)
            size = x.shape[1:3]
            x = x.flatten(1, 2)
            if i == 2:
                x = torch.cat((stage.cls_token.expand(len(x), -1, -1), x), 1)
            for block in stage['blocks']:
                x = self.run(block, x, size)
            if i == 2:
                x = x[:, 1:]
            x = x.unflatten(1, size)
            if i in self.tapped:
                norm = getattr(self, f'norm{i}', nn.Identity())
                maps[i] = norm(x).permute(0, 3, 1, 2).contiguous()
            x = x.permute(0, 3, 1, 2)
        if 3 in self.out_indices:
            maps[3] = F.max_pool2d(maps[2], 2, 2, ceil_mode=True)
        return tuple(maps[i] for i in self.out_indices)

    def stage_id(self, name: str) -> int:
        if match := _STAGE.match(name):
            return 0 if name.startswith('stage0.patch_embed.') else int(match[1]) + 1
        return len(self.depths) + 1

    def layer_id(self, name: str) -> int:
        """Patch embedding and class token of a later stage count with its first block."""
        stage = self.stage_id(name)
        if stage == 0 or stage > len(self.depths):
            return super().layer_id(name)
        match = _BLOCK.match(name)
        return sum(self.depths[:stage - 1]) + (int(match[2]) if match else 0) + 1

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith('cls_token')}

    @staticmethod
    def convert(state: dict[str, Tensor], net: Backbone) -> dict[str, Tensor]:
        """Official names are ours, and those of Hugging Face's transformers are translated.
        The last norm goes with the classifier: it saw class tokens only.

        The transformers library computes an exact GELU where the official code has a quick
        one; weights trained there are evaluated here by the official function, which shifts
        an output by 1 to 3 % of its standard deviation.
        """
        def ours(name: str) -> str:
            for pattern, new in _FROM_TRANSFORMERS.items():
                name = re.sub(pattern, new, name)
            return name

        named = {ours(name): tensor for name, tensor in state.items()}
        return {name: tensor for name, tensor in named.items()
                if not name.startswith(('norm.', 'head.'))}

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        """The official cases tap the three raw stage outputs."""
        return dict(arch=variant, out_indices=(0, 1, 2), out_norm=False)


ARCHS = dict(
    cvt_13=dict(dims=(64, 192, 384), heads=(1, 3, 6), depths=(1, 2, 10, 0)),
    cvt_21=dict(dims=(64, 192, 384), heads=(1, 3, 6), depths=(1, 4, 16, 0)),
    cvt_w24=dict(dims=(192, 768, 1024), heads=(3, 12, 16), depths=(2, 2, 20, 0)),
)
register(CvT, ARCHS)
