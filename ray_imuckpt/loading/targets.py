"""The live objects that `start` was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ray_imuckpt.loading.stored_state import Later
from ray_imuckpt.state.names import names_of
from ray_imuckpt.state.objects import is_stateful
from ray_imuckpt.state.spread import is_spread
from ray_imuckpt.state.wrappers import bare_optimizer


@dataclass(frozen=True)
class Targets:
    """The live objects that a checkpoint is restored into.

    Attributes:
        model: The model, wrapped or bare.
        optimizer: The optimizer of its parameters, ``None`` if there is none to restore.
        other: What was passed by keyword, plain values included.
        per_rank: The objects whose states differ by rank.
        device: Where the model is moved, ``None``: it stays.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    other: Mapping[str, Any] = field(default_factory=dict)
    per_rank: Mapping[str, Any] = field(default_factory=dict)
    device: torch.device | str | None = None

    @property
    def objects(self) -> dict[str, Any]:
        """Return those in `other` that are restored in place, by name."""
        return {name: value for name, value in self.other.items() if is_stateful(value)}

    @cached_property
    def later(self) -> Later:
        """Return the names of those of which each rank reads its part, as of the model."""
        per_rank = {
            name
            for name, value in self.per_rank.items()
            if is_spread(value) and not self.overlaps(value)
        }
        other = {name for name, value in self.objects.items() if is_spread(value)}
        return Later(other, per_rank, whole=self.per_rank.keys() - per_rank)

    def overlaps(self, value: Any) -> bool:
        """Return whether the model or the optimizer has state of this object as well."""
        if isinstance(value, nn.Module):
            return bool(names_of(self.model, [value]))
        return bare_optimizer(value) is bare_optimizer(self.optimizer)

    def move(self) -> None:
        """Move the model to its device."""
        if self.device is not None:
            self.model.to(self.device)


def in_per_rank(name: str) -> str:
    """Return what errors call an object in ``per_rank``."""
    return f"per_rank[{name!r}]"
