"""HaloNet's attention in its textbook form, timm's, and both forms in H0's first stage."""
from __future__ import annotations

import torch
from timm.layers.halo_attn import HaloAttn

from backbones.halonet import ARCHS, HALO_SETTINGS, HaloAttention

from . import Case


def textbook(ours: HaloAttention) -> HaloAttn:
    """timm's module, of the same parameters: keys and values of every window are copied out
    by unfold, and logits are held for all windows at once."""
    dim = ours.q.in_channels
    theirs = HaloAttn(dim, ours.values, stride=ours.stride, num_heads=ours.heads,
                      dim_head=ours.q.out_channels // ours.heads, block_size=ours.block,
                      halo_size=ours.halo)
    theirs.q, theirs.kv = ours.q, ours.kv
    for name, table in ours.pos_embed.items():
        setattr(theirs.pos_embed, name, table)
    return theirs


def case(height: int, width: int) -> Case:
    """A map of whole blocks, in channels-last memory as in the network (timm's likes it, too),
    and the parameters."""
    h0 = ARCHS['halonet_h0']
    block = h0['block']
    rows, columns = (-(-side // (4 * block)) * block for side in (height, width))
    shape = 1, h0['mids'][0], rows, columns
    ours = HaloAttention(h0['mids'][0], 1, h0['heads'][0],
                         **{key: h0[key] for key in HALO_SETTINGS})
    ours.reset_parameters()
    theirs = textbook(ours)
    return Case(lambda x, *_: theirs(x), lambda x, *_: ours(x),
                [torch.randn(shape).contiguous(memory_format=torch.channels_last),
                 *ours.parameters()],
                f'a map of {"x".join(map(str, shape))}, {ours.heads} heads, blocks of {block}, '
                f'halo {ours.halo}')
