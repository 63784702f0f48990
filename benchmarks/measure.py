"""The state that is saved, the clock, and the tables."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import nn


def build(
    megabytes: float, tensors: int = 576, device: str = "cpu"
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model whose weights and AdamW moments fill so many megabytes, in so many tensors."""
    count = tensors // 3
    size = int(megabytes * 1_000_000) // (count * 3 * 4)
    model = nn.ParameterList(nn.Parameter(torch.randn(size, device=device)) for _ in range(count))
    return model, stepped(model, torch.randn_like)


def stepped(
    model: nn.Module, gradient: Callable[[torch.Tensor], torch.Tensor]
) -> torch.optim.Optimizer:
    """AdamW that has made a step, so that its moments are there.

    Args:
        model: Whose parameters it trains.
        gradient: Makes the gradient of a parameter.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = gradient(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


_CALM = 0.3  # seconds

Row = tuple[Callable[[], object], Callable[[], object]]
Rows = Mapping[str, Row]
"""Name to what is timed, and what has to follow untimed."""


class Figure(NamedTuple):
    """Seconds: the median of all repeats, and the best one.

    The best one tells what the machine can do; the median tells what it did, its own troubles
    included (a virtual disk that first has to find blocks takes several times as long).
    """

    median: float
    best: float


def medians(rows: Rows, repeats: int) -> dict[str, Figure]:
    """The seconds of each row; all rows in turn, so that a slow moment meets them all.

    Before each, what was written is brought to the disk, and the host of a virtual machine, which
    is not done when ``sync`` returns, gets a moment: no row pays for the one before it.
    """
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(repeats + 1):
        for name, (call, after) in rows.items():
            os.sync()
            time.sleep(_CALM)
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
            after()
    # The first one maps memory and warms caches.
    return {name: Figure(statistics.median(t[1:]), min(t[1:])) for name, t in times.items()}


def alone(*calls: Callable[[], object]) -> Row:
    """A row of one call, or of some in turn, that nothing has to follow."""

    def all_of_them() -> None:
        for call in calls:
            call()

    return all_of_them, int


def table(title: str, rows: Mapping[str, Figure], limit: str) -> None:
    """Print figures, and as multiples of the limit's."""
    print(f"\n| {title} | median s | times the limit | best s | times the limit |")
    print("|---|---|---|---|---|")
    for name, (median, best) in rows.items():
        print(
            f"| {name} | {median:.3f} | {median / rows[limit].median:.2f} "
            f"| {best:.3f} | {best / rows[limit].best:.2f} |",
            flush=True,
        )
