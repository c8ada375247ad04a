"""Next-ViT (Li et al., 2022), arXiv 2207.05501.

Next Convolution Blocks (a grouped 3 x 3 convolution and an MLP); Next Transformer Blocks end
stages 2 and 4 and every five blocks of stage 3: attention on three quarters of the channels,
then a convolution that makes the last quarter. BatchNorm and ReLU throughout, no position
encoding. Keys are averages of 16 (stage 2) or 4 (stage 3) consecutive tokens *along the
rows*, as in the official code, not of squares; tokens left over at the end give no key.

Official code: bytedance/Next-ViT. timm's modules inside our contract, under timm's names.
Added is the authors' segmentation setting, ``extra_norm``: a BatchNorm closes every stage,
and the next stage takes the normed map; the last one is ImageNet's final norm. (Since
commit 42bc7b8 the official code lacks that norm and fails; this is d5936ea, before it.)
Their detection setting takes the raw maps.

variant  parameters  GMACs 224  512   800x1280  ImageNet-1K top-1 (published), at 384
small        30.7 M       5.79  31.0     131.4  82.5, 83.6
base         43.8 M       8.27  44.3     187.8  83.2, 84.3
large        56.8 M      10.75  57.6     244.3  83.6, 84.7

Published with small, base, large: Mask R-CNN 45.9, 47.2, 48.0 box, 41.8, 42.8, 43.2 mask AP
(1x), 48.0, 49.5, 50.2 box, 43.2, 44.4, 44.8 mask AP (3x); UperNet 48.1, 50.4, 50.1 mIoU
(README of bytedance/Next-ViT).
"""
from __future__ import annotations

import re
from collections.abc import Sequence

from timm.models import nextvit
from torch import Tensor, nn

from .base import Backbone
from .errors import UserError
from .registry import register

CHANNELS = (96, 256, 512, 1024)
_OFFICIAL_BLOCK = re.compile(r'^features\.\d+')
_NAMES = {
    r'\.mlp\.conv([12])\.': r'.mlp.fc\1.',
    r'^extra_norm_list\.(\d)\.': r'stages.\1.norm.',
    r'^norm\.': 'stages.3.norm.',
}
_CUT = re.compile(r'-depth(\d)(\d)(\d+)(\d)')


class NextViT(Backbone):
    """Next-ViT as a dense backbone, strides 4, 8, 16, 32.

    Args:
        arch: 'small', 'base', 'large', or a dict of depths (four, the third a multiple of 5)
            and extra_norm (a BatchNorm ends every stage: the authors' segmentation setting).
        drop_path_rate: of the last block; grows linearly from 0.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
    """

    added = ('stages.0.norm.', 'stages.1.norm.', 'stages.2.norm.')

    def __init__(self, arch: str | dict = 'small', out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0.1, frozen_stages: int = -1, norm_eval: bool = False,
                 with_cp: bool = False, init_cfg: dict | None = None, **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        depths = tuple(arch['depths'])
        if len(depths) != 4 or min(depths) < 1 or depths[2] % 5:
            raise UserError('NextViT: depths must be four positive numbers, the third a multiple '
                            f'of 5, got {depths}')
        self.depths = depths[:self.out_indices[-1] + 1]
        self.out_channels = tuple(CHANNELS[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)

        whole = nextvit.NextViT(3, num_classes=0, depths=depths, drop_path_rate=drop_path_rate)
        self.stem = whole.stem
        self.stages = nn.ModuleList()
        for stage, channels in zip(whole.stages[:len(self.depths)], CHANNELS):
            self.stages.append(nn.ModuleDict(dict(blocks=stage.blocks)))
            if arch['extra_norm']:
                self.stages[-1]['norm'] = nn.BatchNorm2d(channels)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        outputs = []
        for i, stage in enumerate(self.stages):
            for block in stage['blocks']:
                x = self.run(block, x)
            if 'norm' in stage:
                x = stage['norm'](x)
            if i in self.out_indices:
                outputs.append(x.contiguous())
        return tuple(outputs)

    @staticmethod
    def convert(state: dict[str, Tensor], net: Backbone) -> dict[str, Tensor]:
        """timm's names are ours, but for the final norm. Official names count the blocks
        through all stages. What ends the network goes with its classifier, unless the last
        stage ends with that norm."""
        blocks = [f'stages.{stage}.blocks.{block}' for stage, depth in enumerate(net.depths)
                  for block in range(depth)]
        official = {f'features.{i}': block for i, block in enumerate(blocks)}
        # The official network makes a fourth extra norm, and does not use it.
        unused = ('proj_head.', 'head.', 'extra_norm_list.3.')
        if 'stages.3.norm.weight' not in net.state_dict():
            unused += ('norm.',)

        def ours(name: str) -> str:
            for pattern, new in _NAMES.items():
                name = re.sub(pattern, new, name)
            return _OFFICIAL_BLOCK.sub(lambda block: official.get(block[0], block[0]), name)

        return {ours(name): tensor for name, tensor in state.items()
                if not name.startswith(unused)}

    @classmethod
    def reference(cls, variant: str, size: tuple[int, int]) -> dict:
        """Cases tap shortened networks, such as 'small-depth2252', since float32 noise drowns
        a saturated full one, and the segmentation setting, as 'small-extranorm-depth2252'."""
        arch = _CUT.sub('', variant).replace('-extranorm', '')
        options = dict(arch=arch, extra_norm='-extranorm' in variant)
        if cut := _CUT.search(variant):
            options['depths'] = tuple(map(int, cut.groups()))
        return options


ARCHS = dict(
    small=dict(depths=(3, 4, 10, 3), extra_norm=False),
    base=dict(depths=(3, 4, 20, 3), extra_norm=False),
    large=dict(depths=(3, 4, 30, 3), extra_norm=False),
)
register(NextViT, ARCHS)
