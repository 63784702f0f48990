"""How often the ranks of a gang meet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from conftest import adamw, small_model
from ray_imuckpt import Checkpointer

COLLECTIVES = ("all_gather", "all_gather_into_tensor", "all_reduce", "broadcast", "gather")


def _counting(call: Callable[[], Any]) -> tuple[Any, int]:
    """Return what a call returns, and how many collectives it took."""
    real = {name: getattr(dist, name) for name in COLLECTIVES}
    count = 0

    def counted(name: str) -> Callable[..., Any]:
        def collective(*arguments: Any, **keywords: Any) -> Any:
            nonlocal count
            count += 1
            return real[name](*arguments, **keywords)

        return collective

    for name in COLLECTIVES:
        setattr(dist, name, counted(name))
    try:
        return call(), count
    finally:
        for name, collective in real.items():
            setattr(dist, name, collective)


def the_ranks_meet_seldom(directory: Path, rank: int) -> None:
    """What a save and a start cost in collectives, which each wait for the slowest rank."""
    for begins in (1, 2):
        model = DistributedDataParallel(small_model())
        optimizer = adamw(model)
        checkpointer = Checkpointer(directory)
        started, meetings = _counting(lambda: checkpointer.start(model, optimizer))  # noqa: B023
        assert started.start_epoch == begins
        assert meetings <= (4 if begins == 1 else 11), meetings
        saved, meetings = _counting(
            lambda: checkpointer.checkpoint(begins, model=model, optimizer=optimizer)  # noqa: B023
        )
        assert meetings <= 6, meetings
        saved.wait()
