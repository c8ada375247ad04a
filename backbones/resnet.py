"""ResNet (He et al., CVPR 2016), arXiv 1512.03385: the baseline everybody knows.

The v1.5 form, whose bottlenecks stride in the 3 x 3 convolution: torchvision's networks
and mmdet's ``style='pytorch'``. timm's modules inside our contract, under torchvision's
names; from scratch every block starts as its shortcut (last norm gain 0), as in mmdet.
Nothing is frozen by default; detection protocols use ``frozen_stages=1, norm_eval=True``
with pretrained weights.

variant    parameters  GMACs 224  512   800x1280  ImageNet-1K top-1 (torchvision, V1)
resnet18       11.2 M       1.81   9.5      37.0  69.8
resnet34       21.3 M       3.66  19.1      74.8  73.3
resnet50       23.5 M       4.09  21.4      83.4  76.1
resnet101      42.5 M       7.80  40.8     159.2  77.4

Published with Mask R-CNN 1x (mmdet): resnet50 38.2 box, 34.7 mask AP; resnet101 40.0, 36.1.
"""
from __future__ import annotations

import re
from collections.abc import Sequence

from timm.models import resnet
from torch import Tensor

from .base import Backbone
from .errors import UserError, closest
from .registry import register

BLOCKS = dict(basic=resnet.BasicBlock, bottleneck=resnet.Bottleneck)
_STAGE = re.compile(r'layer(\d)\.')
_BLOCK = re.compile(r'layer\d\.(\d+)\.')


class ResNet(Backbone):
    """ResNet as a dense backbone, strides 4, 8, 16, 32.

    Args:
        arch: 'resnet18', 'resnet34', 'resnet50', 'resnet101', or a dict of block ('basic'
            or 'bottleneck') and depths.
        drop_path_rate: of the last block; grows linearly from 0. The published one has none.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see ``Backbone``.
    """

    def __init__(self, arch: str | dict = 'resnet18', out_indices: Sequence[int] = (0, 1, 2, 3),
                 drop_path_rate: float = 0., frozen_stages: int = -1, norm_eval: bool = False,
                 with_cp: bool = False, init_cfg: dict | None = None, **overrides):
        super().__init__(out_indices, frozen_stages, norm_eval, with_cp, init_cfg)
        arch = self.settings(arch, overrides)
        last = self.out_indices[-1]
        self.depths = arch['depths'][:last + 1]
        self.out_strides = tuple(4 * 2 ** i for i in self.out_indices)

        if arch['block'] not in BLOCKS:
            raise UserError(f'ResNet has no block {arch["block"]!r}'
                            f'{closest(arch["block"], BLOCKS)}')
        block = BLOCKS[arch['block']]
        self.out_channels = tuple(block.expansion * 64 * 2 ** i for i in self.out_indices)
        whole = resnet.ResNet(block, arch['depths'], num_classes=0, drop_path_rate=drop_path_rate)
        for name in ('conv1', 'bn1', 'act1', 'maxpool'):
            self.add_module(name, whole.get_submodule(name))
        for stage in range(1, last + 2):
            self.add_module(f'layer{stage}', whole.get_submodule(f'layer{stage}'))
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        outputs = []
        for i in range(len(self.depths)):
            for block in self.get_submodule(f'layer{i + 1}'):
                x = self.run(block, x)
            if i in self.out_indices:
                outputs.append(x.contiguous())
        return tuple(outputs)

    def stage_id(self, name: str) -> int:
        match = _STAGE.match(name)
        return int(match[1]) if match else 0

    def layer_id(self, name: str) -> int:
        match = _BLOCK.match(name)
        return sum(self.depths[:self.stage_id(name) - 1]) + int(match[1]) + 1 if match else 0

    @staticmethod
    def convert(state: dict[str, Tensor], net: Backbone) -> dict[str, Tensor]:
        """torchvision's and timm's names are ours, but for the classifier."""
        return {name: tensor for name, tensor in state.items() if not name.startswith('fc.')}


ARCHS = dict(
    resnet18=dict(block='basic', depths=(2, 2, 2, 2)),
    resnet34=dict(block='basic', depths=(3, 4, 6, 3)),
    resnet50=dict(block='bottleneck', depths=(3, 4, 6, 3)),
    resnet101=dict(block='bottleneck', depths=(3, 4, 23, 3)),
)
register(ResNet, ARCHS)
