"""The state of a gang: a model, replicated (DDP) or sharded (FSDP2), with AdamW's moments."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.limits import tensors_of
from benchmarks.measure import stepped

DDP, FSDP2 = "DDP", "FSDP2"
KINDS = (DDP, FSDP2)

_WIDTH = 512
_LAYER = 3 * 4 * (_WIDTH * _WIDTH + _WIDTH)  # bytes of a layer's weights and moments, in float32


def build(
    kind: str, megabytes: float, device: str = "cpu"
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model and an optimizer that has made a step; every rank calls this.

    Args:
        kind: `DDP` or `FSDP2`.
        megabytes: Of model and optimizer, of the whole gang.
        device: Where they are.
    """
    torch.manual_seed(0)
    layers = max(1, round(megabytes * 1_000_000 / _LAYER))
    with torch.device(device):
        model: nn.Module = nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH) for _ in range(layers)))
    if kind == FSDP2:
        mesh = init_device_mesh(device, (dist.get_world_size(),))
        for layer in (*model.children(), model):
            fully_shard(layer, mesh=mesh)
    elif dist.is_initialized():
        model = DistributedDataParallel(model)
    return model, stepped(model, torch.ones_like)  # random ones of a DTensor communicate


def share(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes that one rank has to save: its shards, and its part of what all have."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    own = 0
    for tensor in tensors_of(model, optimizer):
        own += tensor.to_local().nbytes if isinstance(tensor, DTensor) else tensor.nbytes // ranks
    return own
