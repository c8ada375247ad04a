"""Parameters and multiply-accumulates (MACs) of backbones, detectors and segmentors, counted on
the meta device, where nothing is computed.

MACs are half of torch's FLOPs (``FlopCounterMode``): every matrix product and convolution
counts, also those of attention between queries, keys and values; norms, activations,
softmax, pooling, interpolation and FFTs do not. Papers often leave the products of
attention out. Modules that write a product as elementwise operations, which the counter
does not see, say how many there are by ``elementwise_macs(*inputs)``.

Of a whole model counts what mmdet 2's and mmseg 0's ``get_flops.py`` counted, from which most
papers have their figures: a two-stage detector's backbone, neck and RPN head once, every stage's
box head on 1000 regions and every stage's mask head on 100, whatever number of proposals a
protocol allows; a segmentor's backbone and decode head. Choosing regions, pooling them and
pasting masks has no products. Auxiliary heads, which predict nothing, have parameters and no
MACs.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import NamedTuple, TypeVar

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import backbones
from backbones.errors import UserError

SIZES = ((224, 224), (512, 512), (800, 1280), (512, 2048))
LEAST = 32  # px, the least side that the contract of backbones promises
BOXES, MASKS = 1000, 100  # regions that a box head and a mask head see
Size = tuple[int, int]
Result = TypeVar('Result')


class Complexity(NamedTuple):
    """Learnable numbers, and MACs of one image; None at a size that the network refuses."""

    parameters: int
    macs: int | None


class Work(NamedTuple):
    """Of a backbone alone, and of the whole detector or segmentor."""

    backbone: Complexity
    model: Complexity


class Pass(NamedTuple):
    """MACs of a forward pass of a backbone, and its maps (on the meta device)."""

    macs: int
    maps: Sequence[Tensor]


@MODELS.register_module()
class KnownMaps(nn.Module):
    """Stands in for a backbone whose maps are known already.

    Args:
        out_channels, out_strides: the backbone's.
    """

    maps: Sequence[Tensor] = ()

    def __init__(self, out_channels: Sequence[int], out_strides: Sequence[int]):
        super().__init__()
        self.out_channels, self.out_strides = tuple(out_channels), tuple(out_strides)

    def forward(self, image: Tensor) -> Sequence[Tensor]:
        return self.maps


class ShapesAlone(TorchDispatchMode):
    """Skips, on the meta device, two operations without products whose kernels there are Python
    that takes milliseconds a call: half of all the time."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            x = args[0]
            if func is torch.ops.aten.native_layer_norm.default:
                return x.new_empty(x.shape), x.new_empty(()), x.new_empty(())
            if func is torch.ops.aten.upsample_bilinear2d.default:
                return x.new_empty(*x.shape[:2], *args[1])
        return func(*args, **(kwargs or {}))


def count(net: nn.Module, size: Size) -> Complexity:
    """Count a network's parameters and its MACs for one image.

    Args:
        net: in eval mode; on the meta device nothing is computed.
        size: H, W of the image.
    """
    found = forward(net, size)
    return Complexity(parameters(net), found and found.macs)


def of_backbone(name: str, size: Size) -> Complexity:
    """``count`` of a backbone by its name, such as 'swin_tiny'.

    Raises:
        UserError: there is no such backbone, or a side is shorter than 32 pixels.
    """
    need_size(size)
    with torch.device('meta'):
        net = backbones.create(name).eval()
    return count(net, size)


def of_config(cfg: Config, size: Size) -> Work:
    """Count the backbone and the whole model that a config describes.

    Args:
        cfg: of ``suite.config.load``.
        size: H, W of the image, as the network sees it.

    Raises:
        UserError: a side is shorter than 32 pixels.
    """
    from .config import build_backbone
    need_size(size)
    net = build_backbone(cfg.model.backbone).eval()
    heads = build_heads(cfg, net.out_channels, net.out_strides)
    found = forward(net, size)
    own = parameters(net)
    return Work(Complexity(own, found and found.macs),
                Complexity(own + parameters(heads),
                           found and found.macs + head_macs(heads, found.maps, size)))


def reference_size(cfg: Config) -> Size:
    """H, W at which models of a config's kind are counted, by what the config tests on.

    Detectors: shorter side x 1.6, that is 800 x 1280 on COCO; segmentors: all of the frame that
    images are fitted into, 512 x 2048 on ADE20K, as papers do. Nuclei: a window, enlarged as
    the network sees it. Elsewhere 512 x 512.
    """
    test = cfg.model.get('test_cfg') or {}
    if window := test.get('window'):
        side = round(window * test.get('magnification', 1))
        return side, side
    scale = next((step['scale'] for step in cfg.test_dataloader.dataset.pipeline
                  if step['type'] == 'Resize' and step.get('scale')), (512, 512))
    short, long = min(scale), max(scale)
    return short, short * 8 // 5 if 'roi_head' in cfg.model else long


def parameters(net: nn.Module) -> int:
    """How many a network has."""
    return sum(parameter.numel() for parameter in net.parameters())


def need_size(size: Size) -> None:
    """Raise a UserError where a side is shorter than backbones promise to take."""
    if min(size) < LEAST:
        raise UserError(f'size {size[0]} x {size[1]}: backbones take sides of {LEAST} pixels '
                        'and more')


def forward(net: nn.Module, size: Size) -> Pass | None:
    """A backbone's work for one image and its maps; None at a size that it refuses."""
    if getattr(net, 'size', None) not in (None, tuple(size)):
        return None
    image = torch.zeros(1, 3, *size, device=next(net.parameters()).device)
    return Pass(*_counted(net, lambda: net(image)))


def build_heads(cfg: Config, channels: Sequence[int], strides: Sequence[int]) -> nn.Module:
    """The model of a config on the meta device, with ``KnownMaps`` in the backbone's place."""
    from .config import scope
    stand_in = ConfigDict(type='mmengine.KnownMaps', out_channels=channels, out_strides=strides)
    with torch.device('meta'), scope(cfg):
        # A copy: mmdet's detectors write into what they are built from.
        return MODELS.build(deepcopy(ConfigDict(cfg.model, backbone=stand_in))).eval()


def head_macs(model: nn.Module, maps: Sequence[Tensor], size: Size) -> int:
    """What a model of ``build_heads`` adds to its backbone's work.

    Args:
        maps: the backbone's, of one image.
        size: H, W of that image.
    """
    model.backbone.maps = maps

    def run() -> None:
        features = model.extract_feat(torch.zeros(1, 3, *size))
        if not hasattr(model, 'roi_head'):
            model.decode_head(features)
            return
        model.rpn_head(features)
        roi = model.roi_head
        for heads, pools, regions in ((roi.bbox_head, roi.bbox_roi_extractor, BOXES),
                                      (roi.mask_head, roi.mask_roi_extractor, MASKS)):
            for head, pool in zip(_members(heads), _members(pools), strict=True):
                head(torch.zeros(regions, pool.out_channels, *pool.roi_layers[0].output_size))

    with torch.device('meta'):
        return _counted(model, run)[0]


def _members(modules: nn.Module) -> Sequence[nn.Module]:
    return modules if isinstance(modules, nn.ModuleList) else [modules]


def _counted(net: nn.Module, run: Callable[[], Result]) -> tuple[int, Result]:
    """MACs of what ``run`` does with a network, and its result."""
    extra = []

    def note(module: nn.Module, inputs: tuple, _) -> None:
        extra.append(module.elementwise_macs(*inputs))

    hooks = [module.register_forward_hook(note) for module in net.modules()
             if hasattr(module, 'elementwise_macs')]
    try:
        # Fused attention kernels are not counted everywhere; their textbook form is.
        with (torch.no_grad(), sdpa_kernel(SDPBackend.MATH), ShapesAlone(),
              FlopCounterMode(display=False) as counter):
            result = run()
    finally:
        for hook in hooks:
            hook.remove()
    return counter.get_total_flops() // 2 + sum(extra), result
