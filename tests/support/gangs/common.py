"""What the stories of gangs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor


class Position:
    """A sampler of one rank."""

    def __init__(self, at: int = 0) -> None:
        self.at = at

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def error_of(call: Callable[[], Any]) -> Exception:
    try:
        call()
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError("no error on this rank")


def same_everywhere(told: str) -> None:
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, told)
    assert len(set(everyone)) == 1, everyone


def full(tensor: object) -> torch.Tensor:
    """Return the whole of a sharded tensor; on all ranks at once."""
    assert isinstance(tensor, DTensor)
    return tensor.full_tensor()


def local(tensor: object) -> torch.Tensor:
    """Return this rank's part of a sharded tensor."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local()
