"""A model, its gradients and its optimizer spread over the processes: PyTorch's FSDP2.

``fully_shard`` rather than mmengine's strategies, which wrap FSDP1: parameters keep their
names and their shapes, so optimizer groups, checkpoints and reports need no translation,
and it runs on GPUs and, through Gloo, without them.
"""
from __future__ import annotations

from collections.abc import Iterator

import torch
from mmengine.dist import is_main_process
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from backbones.base import Backbone


def shard(model: nn.Module) -> None:
    """Spread a detector's or segmentor's parameters over all processes, in place.

    A block of the backbone is whole only while it computes; what stands outside of blocks,
    while the model does. Every process must hold the same values.
    """
    if isinstance(net := model.backbone, Backbone):
        for block in blocks(net):
            fully_shard(block)
    fully_shard(model)


def blocks(net: Backbone) -> Iterator[nn.Module]:
    """The largest modules that compute and belong to one layer each."""
    def look(owner: nn.Module, prefix: str) -> Iterator[nn.Module]:
        for name, module in owner.named_children():
            path = f'{prefix}{name}'
            layers = {net.layer_id(parameter) for parameter, _ in module.named_parameters(path)}
            inner = len(layers) == 1 and layers <= set(range(1, net.num_layers + 1))
            if inner and not isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict):
                if any(module.children()):
                    yield module
            else:
                yield from look(module, f'{path}.')
    yield from look(net, '')


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def gather(content):
    """The same nest of dicts, lists and tensors with whole tensors for shards, on the CPU;
    empty, but for the first process. All processes take part."""
    if isinstance(content, DTensor):
        whole = content.detach().full_tensor()
        return whole.cpu() if is_main_process() else None
    if isinstance(content, dict):
        return {key: gather(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(gather(value) for value in content)
    return content.cpu() if isinstance(content, Tensor) else content


def scatter(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process holds, as the shards of ``like``."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    # A copy: a view would keep the whole in memory.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements,
                             src_data_rank=None).clone()


def scatter_checkpoint(checkpoint: dict, model: nn.Module,
                       optimizer: torch.optim.Optimizer) -> None:
    """Cut the contents of an ordinary checkpoint to the shards of this process, in place."""
    weights = checkpoint.get('state_dict', checkpoint)
    own = model.state_dict()
    for name, value in weights.items():
        if (inside := name.removeprefix('module.')) in own:
            weights[name] = scatter(value, own[inside])
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    for index, state in checkpoint.get('optimizer', {}).get('state', {}).items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                state[name] = scatter(value, parameters[index])
