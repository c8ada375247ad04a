"""QnA's attention in its textbook form, and both forms as the first layer of the network."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.qna import ARCHS, QueryAndAttend

from . import Case


def unfold_attention(layer: QueryAndAttend, x: Tensor) -> Tensor:
    """The textbook form of a QnA layer: keys and values of every window are copied out by
    unfold, every window has its softmax.

    Args and result as there: B x H x W x C.
    """
    batch, height, width, _ = x.shape
    heads, stride = layer.heads, layer.stride
    side = round(len(layer.rpe_bias) ** 0.5)

    def windows(t: Tensor) -> Tensor:
        columns = F.unfold(t.permute(0, 3, 1, 2), side, padding=side // 2, stride=stride)
        return columns.view(batch, -1, side * side, columns.shape[-1]).transpose(-1, -2)

    def by_query(table: Tensor) -> Tensor:
        return table.T.reshape(-1, heads, 1, side * side)

    query = layer.query.unflatten(1, (heads, -1))
    query = query / (query.norm(dim=-1, keepdim=True) + 1e-6) * query.shape[-1] ** -0.5
    k, v = (windows(project(x)).unflatten(1, (heads, -1)) for project in (layer.to_k, layer.to_v))
    logits = torch.einsum('qnd,bndpw->bqnpw', query, k) + by_query(layer.rpe_bias)
    inside = windows(torch.ones(batch, height, width, 1))[:, None].bool()
    weights = logits.masked_fill(~inside, -torch.inf).softmax(-1)
    found = torch.einsum('bqnpw,bndpw->bpnd', weights * by_query(layer.attn_scale_weights), v)
    return layer.to_out(found.reshape(batch, -(-height // stride), -(-width // stride), -1))


def case(height: int, width: int) -> Case:
    """The map, and the layer's parameters."""
    tiny = ARCHS['tiny']
    shape = 1, height // 4, width // 4, tiny['dim']
    layer = QueryAndAttend(tiny['dim'], tiny['dim'], tiny['head_dim'], tiny['queries'],
                           tiny['kernel'])
    for parameter in (layer.query, layer.rpe_bias, layer.attn_scale_weights):
        torch.nn.init.normal_(parameter, std=0.3)
    return Case(lambda x, *_: unfold_attention(layer, x), lambda x, *_: layer(x),
                [torch.randn(shape), *layer.parameters()],
                f'a map of {"x".join(map(str, shape))}, {layer.heads} heads, '
                f'{tiny["kernel"]} x {tiny["kernel"]} windows')
