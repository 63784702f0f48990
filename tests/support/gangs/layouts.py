"""How tensors lie in memory on every rank of a gang."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from conftest import same_bytes
from ray_imuckpt import Checkpointer


class Keeper:
    """Keeps a transposed tensor of its rank."""

    def __init__(self, rank: int) -> None:
        self.kept = (torch.arange(6.0) + rank).reshape(2, 3).t()

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = state["kept"]


def every_rank_keeps_layouts(directory: Path, rank: int) -> None:
    """A gang reads by windows: fused steps of a channels_last model go on byte for byte."""

    def build(sharded: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        wrapped = DistributedDataParallel(model)
        if not sharded:
            return wrapped, torch.optim.AdamW(wrapped.parameters(), lr=0.1, fused=True)
        return wrapped, ZeroRedundancyOptimizer(
            wrapped.parameters(), optimizer_class=torch.optim.AdamW, lr=0.1, fused=True
        )

    def train(run: tuple[nn.Module, torch.optim.Optimizer], first: int, last: int) -> None:
        model, optimizer = run
        for step in range(first, last + 1):
            optimizer.zero_grad()
            data = torch.arange(150.0).reshape(2, 3, 5, 5).sin() * (step + rank)
            model(data).square().sum().backward()
            optimizer.step()

    for sharded in (False, True):
        run, keeper = build(sharded), Keeper(rank)
        train(run, 1, 2)
        checkpointer = Checkpointer(directory / str(sharded))
        per_rank = {"keeper": keeper}
        checkpointer.checkpoint(2, model=run[0], optimizer=run[1], per_rank=per_rank)
        train(run, 3, 4)
        checkpointer.wait()
        for stepped in (0, 3):
            resumed, other = build(sharded), Keeper(-1)
            train(resumed, 1, stepped)
            checkpointer.start(*resumed, per_rank={"keeper": other})
            assert other.kept.stride() == keeper.kept.stride()
            assert same_bytes(other.kept, keeper.kept)
            train(resumed, 3, 4)
            assert same_bytes(dict(resumed[0].state_dict()), dict(run[0].state_dict()))
