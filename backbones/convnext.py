"""ConvNeXt (Liu et al., CVPR 2022), arXiv 2201.03545.

A convolutional network in Swin's proportions: a 4 x 4 patch stem, then stages of blocks made
of a 7 x 7 depthwise convolution, one LayerNorm and an inverted MLP, scaled per channel.
Between stages a LayerNorm and a 2 x 2 convolution of stride 2. Sizes round down: what does not
fill a patch is dropped.

Official code: facebookresearch/ConvNeXt; this is the network of its detection and segmentation
code, which puts a fresh LayerNorm on every output and starts layer scales at 1, not at
ImageNet's 1e-6. timm's block inside our contract,
under timm's names; maps lie in channels-last memory from the image on, and scale, drop path
and skip are one operation.

variant  parameters  GMACs 224  512   800x1280  ImageNet-1K top-1 (published), from 22K
tiny         27.8 M       4.46  23.3      90.9  82.1, 82.9
small        49.5 M       8.68  45.4     177.2  83.1, 84.6
base         87.6 M      15.35  80.2     313.3  83.8, 85.8
large       196.2 M      34.36 179.5     701.2  84.3, 86.6
xlarge      348.2 M      60.92 318.3    1243.2  87.0 from 22K

Published with tiny: Mask R-CNN 46.2 box, 41.7 mask AP (3x); Cascade Mask R-CNN 50.4, 43.7
(3x); UperNet 46.0 mIoU, 46.7 multi-scale (READMEs of facebookresearch/ConvNeXt).
"""
from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d, trunc_normal_
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from .base import Backbone
from .layers import DepthwiseConv2d
from .registry import register

# The official layer ids put so many blocks of the third stage into one layer.
GROUP = 3
_THIRD = re.compile(r'stages\.2\.blocks\.(\d+)\.')
_NAMES = {
    r'^(stem|stages)_(\d)': r'\1.\2',  # timm's features_only
    r'^downsample_layers\.0\.': 'stem.',
    r'^downsample_layers\.(\d)\.': r'stages.\1.downsample.',
    r'^stages\.(\d)\.(\d+)\.': r'stages.\1.blocks.\2.',
    r'\.(dwconv|depthwise_conv)\.': '.conv_dw.',
    r'\.(pwconv|pointwise_conv)(\d)\.': r'.mlp.fc\2.',
}


class Block(ConvNeXtBlock):
    """timm's block with fewer passes over the map. B x C x H x W, channels last in memory."""

    def __init__(self, dim: int, **options):
        super().__init__(dim, **options)
        self.conv_dw = DepthwiseConv2d(dim, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        # Dropping a sample's scale drops its path, and is no pass over its map.
        kept = self.drop_path(x.new_ones(len(x), 1, 1, 1))
        return torch.addcmul(x, y, self.gamma[:, None, None] * kept)


class ConvNeXt(Backbone):
    """ConvNeXt as a dense backbone, strides 4, 8, 16, 32.

    Args:
        arch: 'tiny', 'small', 'base', 'large', 'xlarge', or a dict of dim and depths.
        drop_path_rate: of the last block; grows linearly from 0.
        layer_scale: what the layer scales start at.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
    """

    added = ('norm',)
    size_rule = 'floor'

    def __init__(self, arch: str | dict = 'tiny', out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.4, layer_scale: float = 1., frozen_stages: int = -1,
                 norm_eval: bool = False, with_cp: bool = False, init_cfg: dict | None = None,
                 **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        last = self.out_indices[-1]
        self.depths = arch['depths'][:last + 1]
        dims = [arch['dim'] * 2 ** stage for stage in range(last + 1)]
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)

        rates = iter(torch.linspace(0, drop_path_rate, sum(arch['depths']), device='cpu').tolist())
        self.stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), LayerNorm2d(dims[0]))
        self.stages = nn.ModuleList()
        for stage, (dim, depth) in enumerate(zip(dims, self.depths)):
            self.stages.append(nn.ModuleDict())
            if stage:
                self.stages[stage]['downsample'] = nn.Sequential(
                    LayerNorm2d(dim // 2), nn.Conv2d(dim // 2, dim, 2, 2))
            self.stages[stage]['blocks'] = nn.ModuleList(
                Block(dim, ls_init_value=layer_scale, drop_path=next(rates))
                for _ in range(depth))
        for i, dim in zip(self.out_indices, self.out_channels):
            self.add_module(f'norm{i}', LayerNorm2d(dim))

        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x.to(memory_format=torch.channels_last))
        outputs = []
        for i, stage in enumerate(self.stages):
            if 'downsample' in stage:
                x = stage['downsample'](x)
            for block in stage['blocks']:
                x = self.run(block, x)
            if i in self.out_indices:
                outputs.append(self.get_submodule(f'norm{i}')(x).contiguous())
        return tuple(outputs)

    @property
    def _layers(self) -> list[int]:
        """Layers per stage, as the authors count for layer-wise learning-rate decay: one, but
        the third stage has one for every three blocks."""
        return [-(-depth // GROUP) if stage == 2 else 1 for stage, depth in enumerate(self.depths)]

    @property
    def num_layers(self) -> int:
        """6 with tiny, 12 with the others, the authors' numbers."""
        return sum(self._layers)

    def layer_id(self, name: str) -> int:
        stage = self.stage_id(name)
        if stage == 0:
            return 0
        third = _THIRD.match(name)
        return sum(self._layers[:stage - 1]) + (int(third[1]) // GROUP if third else 0) + 1

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith('.gamma')}

    @staticmethod
    def convert(state: dict[str, Tensor], net: Backbone) -> dict[str, Tensor]:
        """The official names, mmpretrain's and timm's, also those of its ``features_only``.

        The classifier's last norm goes with its head, as in the official dense code;
        mmpretrain calls it ``norm3``, and a dense checkpoint has others beside it.
        """
        classifier = ['norm.', 'head.']
        if any('depthwise_conv' in name for name in state) and 'norm0.weight' not in state:
            classifier.append('norm3.')
        converted = {}
        for name, tensor in state.items():
            if name.startswith(tuple(classifier)):
                continue
            for pattern, ours in _NAMES.items():
                name = re.sub(pattern, ours, name)
            converted[name] = tensor
        return converted


ARCHS = dict(
    tiny=dict(dim=96, depths=(3, 3, 9, 3)),
    small=dict(dim=96, depths=(3, 3, 27, 3)),
    base=dict(dim=128, depths=(3, 3, 27, 3)),
    large=dict(dim=192, depths=(3, 3, 27, 3)),
    xlarge=dict(dim=256, depths=(3, 3, 27, 3)),
)
register(ConvNeXt, ARCHS)
