"""GrafT-style: our reconstruction of Grafting Vision Transformers (Park et al., WACV 2024),
arXiv 2210.15943.

An add-on: at chosen blocks of a host, a graft looks at the tokens at several coarser scales
and hands what it saw back.

No code was published (jongwoopark7978/Grafting-Vision-Transformer is a README), and of the
paper we could read the abstract and one figure. From there: a graft runs parallel to a block's
attention, forked before it and joined before the MLP, which both share; it is a chain of
scales, outward to ever smaller grids and back; hosts are DeiT, Swin and MobileViT; grafts stand
at arbitrary depths. All else is ours, called R1: with u = LN1(x), attention A, graft G,

    x = x + DropPath(A(u)) + DropPath(G(u));  x = x + DropPath(MLP(LN2(x)))

    outward  t_b = DWConv3x3(s_b-1), stride 2;  s_b = t_b + MSA_b(LN_b(t_b));  s_0 = u
    back     r_B = s_B;  r_b = s_b + Up(r_b+1)
    G(u)     gamma * Up(r_1)

Attention has the host's heads and, at all scales but the last, which is global, its windows,
unshifted and without a bias table. gamma starts at 0: a pretrained host with grafts starts as
the host. No weights of a graft exist. Which blocks are grafted, and with how many scales, is a
guess, too.

variant            parameters  GMACs 224   512  800x1280  of which grafts
mobilevit_xxs           1.2 M       0.32   2.8      27.0  0.2 M;  0.02  0.2   2.7
deit_tiny               7.2 M       1.47  11.6     101.5  1.2 M;  0.04  0.3   2.4
swin_tiny              29.7 M       4.67  26.2     101.3  2.2 M;  0.18  1.2   6.7
dilateformer_tiny      17.9 M       3.27  20.3     123.6  1.2 M;  0.11  0.7   4.3
cvt_13                 22.9 M       4.87  39.0     342.8  3.3 M;  0.31  4.0  49.4

Published, of the authors' networks: ImageNet-1K top-1 +1.4 with Swin-T, +3.9 with DeiT-T, +1.9
with MobileViT-XXS (abstract). Nothing is known of ours.
"""
from __future__ import annotations

from collections import Counter

import torch
import torch.nn.functional as F
from timm.layers import Attention, trunc_normal_
from torch import Tensor, nn

from .base import Backbone
from .errors import UserError, closest
from .graftable import Graftable, Site, sites
from .layers import in_windows
from .registry import register, systems

_GRAFT = '.graft.'
# Scales of the grafts in each stage, and the step from one grafted block of a stage to the
# next. In pyramids the last scale has stride 32, 7 x 7 at an image size of 224.
PYRAMID = ((3, 2, 1, 0), 2)
PLACES = dict(DeiT=((2, 2, 2, 2), 3), MobileViT=((0, 2, 2, 1), 2))


class Graft(nn.Module):
    """A chain of coarser and coarser scales, there and back. B x H x W x C.

    Args:
        site: where it stands.
        scales: how many there are; each halves the grid, rounding up.
    """

    def __init__(self, site: Site, scales: int):
        super().__init__()
        dim = site.dim
        self.window = site.window
        self.merge = nn.ModuleList(nn.Conv2d(dim, dim, 3, 2, padding=1, groups=dim)
                                   for _ in range(scales))
        self.norm = nn.ModuleList(nn.LayerNorm(dim, eps=site.eps) for _ in range(scales))
        self.attn = nn.ModuleList(Attention(dim, site.heads, qkv_bias=True)
                                  for _ in range(scales))
        self.gamma = nn.Parameter(torch.zeros(dim))
        for attn in self.attn:
            for linear in (attn.qkv, attn.proj):
                trunc_normal_(linear.weight, std=0.02)
                nn.init.zeros_(linear.bias)

    def forward(self, u: Tensor) -> Tensor:
        chain = [u]
        for merge, norm, attn in zip(self.merge, self.norm, self.attn):
            s = merge(chain[-1].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            windowed = self.window is not None and attn is not self.attn[-1]
            chain.append(s + self.attend(attn, norm(s), self.window if windowed else None))
        r = chain.pop()
        for s in reversed(chain[1:]):
            r = s + enlarge(r, s.shape[1:3])
        return enlarge(self.gamma * r, u.shape[1:3])

    @staticmethod
    def attend(attn: nn.Module, x: Tensor, window: int | None) -> Tensor:
        """Attention inside windows, or over the map. B x H x W x C."""
        if window is not None:
            return in_windows(attn, x, window)
        return attn(x.flatten(1, 2)).unflatten(1, x.shape[1:3])


def enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinearly, B x H x W x C."""
    return F.interpolate(x.permute(0, 3, 1, 2), size, mode='bilinear').permute(0, 2, 3, 1)


class GrafT(Backbone):
    """A host with grafts in it, in the place of the host: the same maps, and the same names of
    parameters, to which the grafts add ``BLOCK.graft.*``.

    ``GrafT(host=dict(type='Swin', arch='tiny'), grafts={'layers.0.blocks.0': 3})``

    Args:
        arch: 'swin_tiny', 'deit_tiny', ... for that host, or a dict of host.
        host: config of a registered backbone whose blocks are ``Graftable``.
        grafts: number of scales by the name of the grafted block; default every second block
            of each stage (DeiT: every third), with ``PLACES`` or else ``PYRAMID``'s scales.
        options: further settings of the host, such as out_indices, drop_path_rate, with_cp
            or init_cfg: a checkpoint of the host, or of such a network.

    Attributes:
        host: the host, which holds the grafts.

    Raises:
        UserError: no host, or one that is unknown or cannot be grafted; no such block;
            less than one scale.
    """

    reconstruction = True

    def __init__(self, arch: str | dict | None = None, host: dict | None = None,
                 grafts: dict[str, int] | None = None, **options):
        net = self._host(arch, host, options)
        super().__init__(net.out_indices, net.frozen_stages, net.norm_eval, net.with_cp,
                         net.init_cfg)
        self.depths, self.size_rule = net.depths, getattr(net, 'size_rule', 'ceil')
        self.out_channels, self.out_strides = net.out_channels, net.out_strides
        # The host is no submodule. What it holds is held here, too, and keeps its names.
        held = ('_modules', '_parameters', '_buffers', '_non_persistent_buffers_set')
        self.__dict__.update({name: net.__dict__[name] for name in held}, host=net)

        places = sites(net)
        system = type(net).__name__
        if not places:
            raise UserError(f'GrafT: {system} has no blocks to graft onto; backbones/graftable.py '
                            'says how to make them')
        self.grafts = placement(net, places) if grafts is None else dict(grafts)
        for name, scales in self.grafts.items():
            if name not in places:
                raise UserError(f'GrafT: {system} has no block {name!r}{closest(name, places)}')
            if not isinstance(scales, int) or scales < 1:
                raise UserError(f'GrafT: the graft at {name} must have 1 scale or more, '
                                f'got {scales!r}')
            places[name].graft = Graft(places[name].site, scales)
        self.added = (*net.added, *(name + _GRAFT for name in self.grafts))
        self.freeze()

    def _host(self, arch: str | dict | None, host: dict | None, options: dict) -> Backbone:
        """The host without grafts."""
        if isinstance(arch, str):
            if arch not in self.archs:
                raise UserError(f'GrafT has no arch {arch!r}{closest(arch, self.archs)}')
            arch = self.archs[arch]
        arch = arch or {}
        if arch and host:
            raise UserError('GrafT: arch names a host, and host another one; give one of them')
        if unknown := arch.keys() - {'host'}:
            raise UserError(f'GrafT: an arch has a host and nothing else, got {min(unknown)!r}')
        host = host or arch.get('host')
        if not isinstance(host, dict) or 'type' not in host:
            raise UserError("GrafT lacks a host: give host=dict(type='Swin', arch='tiny') or "
                            f'another one, or an arch. Known: {", ".join(self.archs)}')
        host = dict(host)
        system = host.pop('type').removeprefix('mmengine.')
        known = {name: cls for name, cls in systems().items() if cls is not GrafT}
        if system not in known:
            raise UserError(f'GrafT: unknown host {system!r}{closest(system, known)}')
        return known[system](**{**host, **options})

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.host(x)

    def train(self, mode: bool = True) -> GrafT:
        self.training = mode
        self.host.train(mode)
        return self

    def stage_id(self, name: str) -> int:
        return self.host.stage_id(name)

    @property
    def num_layers(self) -> int:
        return self.host.num_layers

    def layer_id(self, name: str) -> int:
        return self.host.layer_id(name)

    def no_weight_decay(self) -> set[str]:
        gains = {name for name, _ in self.named_parameters() if name.endswith(_GRAFT + 'gamma')}
        return self.host.no_weight_decay() | gains

    @staticmethod
    def convert(state: dict[str, Tensor], net: GrafT) -> dict[str, Tensor]:
        """Of the host's checkpoints what the host makes of them; ours have grafts, too."""
        grafts = {name: tensor for name, tensor in state.items() if _GRAFT in name}
        others = {name: tensor for name, tensor in state.items() if _GRAFT not in name}
        return {**net.host.convert(others, net.host), **grafts}


def placement(host: Backbone, places: dict[str, Graftable]) -> dict[str, int]:
    """Which of a host's blocks are grafted by default, and with how many scales.

    Args:
        host: in which they stand.
        places: its blocks by name, in order.
    """
    scales, step = PLACES.get(type(host).__name__, PYRAMID)
    count: Counter[int] = Counter()
    chosen = {}
    for name in places:
        stage = host.stage_id(name + '.') - 1
        if stage < len(scales) and scales[stage] and count[stage] % step == 0:
            chosen[name] = scales[stage]
        count[stage] += 1
    return chosen


ARCHS = dict(
    mobilevit_xxs=dict(host=dict(type='MobileViT', arch='xxs')),
    deit_tiny=dict(host=dict(type='DeiT', arch='tiny')),
    swin_tiny=dict(host=dict(type='Swin', arch='tiny')),
    dilateformer_tiny=dict(host=dict(type='DilateFormer', arch='tiny')),
    cvt_13=dict(host=dict(type='CvT', arch='cvt_13')),
)
register(GrafT, ARCHS)
