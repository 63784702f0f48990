"""What is restored in tests: large tensors, objects of all kinds, one that refuses."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from conftest import adamw, small_model
from ray_imuckpt import (
    Checkpointer,
)
from ray_imuckpt.state.objects import take_object


def large(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Build files of several chunks: 12 MiB of weights, a frozen part, 24 MiB of moments."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1024, 1024), nn.Linear(1024, 2048), nn.Linear(1024, 2049))
    model[2].requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


def memory(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[int]:
    """Return where every tensor lies."""
    moments = [t for values in optimizer.state.values() for t in values.values()]
    return [t.data_ptr() for t in (*model.state_dict().values(), *moments)]


def flip(directory: Path, pattern: str, position: int) -> None:
    """Alter one byte of a file."""
    (path,) = directory.glob(pattern)
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


class Refuses:
    """An object that never takes its state back."""

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, _: Any) -> None:
        raise RuntimeError("not this one")


class Everything:
    """A run's objects of all kinds, trained a little by `seed`."""

    def __init__(self, seed: int, scaler: Any, **more: Any) -> None:
        self.model = small_model(seed)
        self.optimizer = adamw(self.model)
        critic = small_model(seed + 10)
        self.critic_optimizer = torch.optim.Adam(critic.parameters(), lr=0.1 + seed)
        for model, optimizer in (
            (self.model, self.optimizer),
            (critic, self.critic_optimizer),
        ):
            model(torch.randn(8, 4)).sum().backward()
            optimizer.step()
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, factor=0.9)
        plateau.step(float(seed))
        self.other = {
            "critic_optimizer": self.critic_optimizer,
            "generator": np.random.default_rng(seed),
            "plateau": plateau,
            "scaler": scaler,
            **more,
        }
        self.critic = [parameter.detach() for parameter in critic.parameters()]
        self.per_rank = {"bits": torch.Generator().manual_seed(seed)}

    def save(self, directory: Path, epoch: int = 1) -> None:
        Checkpointer(directory, blocking=True).checkpoint(
            epoch,
            model=self.model,
            optimizer=self.optimizer,
            per_rank=self.per_rank,
            critic=self.critic,
            **self.other,
        )

    def start(self, directory: Path, **choices: Any) -> Any:
        return Checkpointer(directory).start(
            self.model, self.optimizer, per_rank=self.per_rank, **self.other, **choices
        )

    def state(self) -> Any:
        objects = {**self.other, **self.per_rank}
        return copy.deepcopy(
            [
                dict(self.model.state_dict()),
                self.optimizer.state_dict(),
                *(take_object(objects[name]) for name in sorted(objects)),
            ]
        )
