"""Shared builders of the tests of the plateau detector."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st

from ray_imuckpt import PlateauDetector
from ray_imuckpt.schedules import Exponential

HALVING = Exponential(1.0, 0.5)
SETTINGS = settings(derandomize=True, deadline=None, max_examples=300)


def sgd(*rates: Any) -> torch.optim.Optimizer:
    """An optimizer with one parameter group for each rate."""
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=0.123)


def rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def at_state(state: int, schedule: Any = HALVING) -> PlateauDetector:
    detector = PlateauDetector(schedule, patience=2)
    detector.adjust(sgd(1.0), state)
    return detector


def named_schedule(state: int) -> float:
    return 1.0 / state


class Reference:
    """Plain Python: looks at the whole history of losses at every tick."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.losses: list[float] = []
        self.marks = [0]  # ticks at which the count began anew

    def step(self, loss: float) -> bool:
        best = min((x for x in self.losses if not math.isnan(x)), default=math.inf)
        self.losses.append(loss)
        tick = len(self.losses)
        better = not math.isnan(loss) and loss < best
        plateau = not better and tick - max(self.marks) >= self.patience
        if better or plateau:
            self.marks.append(tick)
        return plateau


LOSSES = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, 1.0, 2.0, 3.0, math.nan, math.inf]),  # ties are common
)
