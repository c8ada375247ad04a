"""Heads that turn a backbone's maps into what nuclei are cut out of: UperNet, carried on to
full resolution, with HoVer-Net's outputs or with a boundary class.

UperNet ends at stride 4, where touching nuclei merge. Here its map is upsampled twice by 2,
and each time meets features of the image itself at that resolution. These layers are ours;
HoVer-Net has a U-Net decoder per output.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.registry import MODELS
from mmseg.models.decode_heads import UPerHead
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from .errors import DataError
from .losses import cross_entropy, dice_loss, hv_gradient_mse, hv_mse
from .postprocess import boundary_instances, hover_watershed, type_of_nuclei


class NucleiHead(UPerHead):
    """What the heads have in common: UperNet's decoder, full resolution, types.

    The inputs of all methods are the backbone's maps and, last, the normalised image.
    A subclass names its own outputs, their losses and how nuclei come out of them.

    Args:
        num_classes: of the data. More than one are types of nuclei, which get an output of
            their own.
        fine_channels: width at full resolution; half resolution has twice as many.
        weights: weights of the losses, by name; some may be left at their defaults.
        kwargs: of mmseg's ``UPerHead``.
    """

    outputs: dict[str, int]  # name -> channels
    default_weights: dict[str, float]

    def __init__(self, num_classes: int, fine_channels: int = 32, weights: dict | None = None,
                 **kwargs):
        super().__init__(num_classes=num_classes, threshold=0.5, init_cfg=None, **kwargs)
        del self.conv_seg
        self.outputs = dict(self.outputs)
        self.weights = dict(self.default_weights)
        if num_classes > 1:
            self.outputs |= dict(types=num_classes + 1)
            self.weights |= dict(types_ce=1., types_dice=1.)
        if unknown := set(weights or ()) - set(self.weights):
            raise DataError(f'{type(self).__name__} has no loss {", ".join(sorted(unknown))} to '
                            f'weight; it has {", ".join(self.weights)}')
        self.weights |= weights or {}
        full, half = fine_channels, 2 * fine_channels
        self.image_full = self._conv(3, full)
        self.image_half = self._conv(full, half, stride=2)
        self.reduce = self._conv(self.channels, half, 1)
        self.merge_half = self._conv(2 * half, half)
        self.merge_full = self._conv(half + full, full)
        self.branches = nn.ModuleDict({
            name: nn.Sequential(self._conv(full, full), nn.Conv2d(full, channels, 1))
            for name, channels in self.outputs.items()})

    def _conv(self, inside: int, outside: int, side: int = 3, stride: int = 1) -> ConvModule:
        return ConvModule(inside, outside, side, stride, side // 2, norm_cfg=self.norm_cfg,
                          act_cfg=self.act_cfg, conv_cfg=self.conv_cfg)

    def forward(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Name -> B x channels x H x W, logits or HV maps, at the image's size."""
        *maps, image = inputs
        full = self.image_full(image)
        half = self.image_half(full)
        x = self._forward_feature(maps)
        if self.dropout is not None:
            x = self.dropout(x)
        x = self.merge_half(torch.cat([_resize(self.reduce(x), half), half], 1))
        x = self.merge_full(torch.cat([_resize(x, full), full], 1))
        return {name: branch(x) for name, branch in self.branches.items()}

    def loss(self, inputs: Sequence[Tensor], samples: list[SegDataSample],
             train_cfg: dict | None = None) -> dict[str, Tensor]:
        """Weighted losses: of the head's own outputs and, where there are types, theirs.

        Args:
            samples: with ``gt_nuclei`` of ``PackNuclei``.

        Raises:
            DataError: types are to be learned, and the data has none.
        """
        outputs = self(inputs)
        true = {name: torch.stack([sample.gt_nuclei.get(name) for sample in samples])
                for name in samples[0].gt_nuclei.keys()}
        losses = self.own_losses(outputs, true)
        if 'types' in outputs:
            if 'types' not in true:
                raise DataError(f'{samples[0].img_path} comes without types, and the head is to '
                                'learn some; train without: --cfg-options '
                                'model.decode_head.num_classes=1')
            types = true['types'].squeeze(1).long()
            losses |= dict(types_ce=cross_entropy(outputs['types'], types),
                           types_dice=dice_loss(outputs['types'], types))
        return {f'loss_{name}': self.weights[name] * value for name, value in losses.items()}

    def maps(self, inputs: Sequence[Tensor]) -> Tensor:
        """All outputs as probabilities and HV maps: B x sum of channels x H x W float32, in
        the order of ``outputs``."""
        outputs = {name: value.float() for name, value in self(inputs).items()}
        return torch.cat([value if name == 'hv' else value.softmax(1)
                          for name, value in outputs.items()], 1)

    def nuclei(self, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Cut the nuclei of a whole image out of its maps.

        Args:
            maps: of ``maps``, C x H x W float32.

        Returns:
            labels: H x W int32.
            types: H x W uint8, that of the nucleus at each pixel; None without types.
        """
        ends = np.cumsum(list(self.outputs.values()))[:-1]
        parts = dict(zip(self.outputs, np.split(maps, ends)))
        labels = self.own_nuclei(parts)
        if 'types' not in parts:
            return labels, None
        return labels, type_of_nuclei(labels, parts['types'])

    def own_losses(self, outputs: dict[str, Tensor], true: dict[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError

    def own_nuclei(self, parts: dict[str, np.ndarray]) -> np.ndarray:
        raise NotImplementedError


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode='bilinear', align_corners=False)


@MODELS.register_module()
class HoverHead(NucleiHead):
    """Probability of nuclei and HV maps, as in HoVer-Net, on UperNet.

    Losses (default weights, HoVer-Net's of its PyTorch version): ``nuclei_ce`` 1,
    ``nuclei_dice`` 1, ``hv_mse`` 1 (its TensorFlow version: 2), ``hv_gradient`` 1.

    Args:
        crossed: the gradient loss as the official code has it, see ``losses.hv_gradient``.
        threshold, edge, least_area: of ``postprocess.hover_watershed``.
        kwargs: of ``NucleiHead``.
    """

    outputs = dict(nuclei=2, hv=2)
    default_weights = dict(nuclei_ce=1., nuclei_dice=1., hv_mse=1., hv_gradient=1.)

    def __init__(self, crossed: bool = False, threshold: float = 0.5, edge: float = 0.4,
                 least_area: int = 10, **kwargs):
        super().__init__(**kwargs)
        self.crossed = crossed
        self.cut = dict(threshold=threshold, edge=edge, least_area=least_area)

    def own_losses(self, outputs: dict[str, Tensor], true: dict[str, Tensor]) -> dict[str, Tensor]:
        inside = true['classes'].squeeze(1) > 0
        return dict(
            nuclei_ce=cross_entropy(outputs['nuclei'], inside.long()),
            nuclei_dice=dice_loss(outputs['nuclei'], inside.long()),
            hv_mse=hv_mse(outputs['hv'], true['hv']),
            hv_gradient=hv_gradient_mse(outputs['hv'], true['hv'], inside, self.crossed))

    def own_nuclei(self, parts: dict[str, np.ndarray]) -> np.ndarray:
        return hover_watershed(parts['nuclei'][1], parts['hv'], **self.cut)


@MODELS.register_module()
class BoundaryHead(NucleiHead):
    """Background, inside and boundary of nuclei: the simple alternative. Losses: ``ce`` 1 and
    ``dice`` 1, as of HoVer-Net's probability.

    Args:
        width: of the boundary in pixels, that of ``NucleiTargets``.
        least_area: of ``postprocess.boundary_instances``.
        kwargs: of ``NucleiHead``.
    """

    outputs = dict(classes=3)
    default_weights = dict(ce=1., dice=1.)

    def __init__(self, width: int = 3, least_area: int = 10, **kwargs):
        super().__init__(**kwargs)
        self.cut = dict(width=width, least_area=least_area)

    def own_losses(self, outputs: dict[str, Tensor], true: dict[str, Tensor]) -> dict[str, Tensor]:
        classes = true['classes'].squeeze(1).long()
        return dict(ce=cross_entropy(outputs['classes'], classes),
                    dice=dice_loss(outputs['classes'], classes))

    def own_nuclei(self, parts: dict[str, np.ndarray]) -> np.ndarray:
        return boundary_instances(parts['classes'], **self.cut)
