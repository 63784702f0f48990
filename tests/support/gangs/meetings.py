"""How often the ranks of a gang meet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from conftest import adamw, small_model
from ray_imuckpt import Checkpointer
from support.gangs import zoo

COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_reduce",
    "broadcast",
    "gather",
    "all_to_all_single",
)


def counting(call: Callable[[], Any]) -> tuple[Any, int]:
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
    for begins in (1, 4):
        model = DistributedDataParallel(small_model())
        optimizer = adamw(model)
        checkpointer = Checkpointer(directory, save_every=10)
        started, meetings = counting(lambda: checkpointer.start(model, optimizer))  # noqa: B023
        assert started.start_epoch == begins
        assert meetings <= (4 if begins == 1 else 9), meetings
        for epoch in range(begins, begins + 3):  # the first compares values, the others settle one
            for force, most in ((True, 4), (False, 1)):
                save = partial(checkpointer.checkpoint, epoch, force=force)
                _, meetings = counting(partial(save, model=model, optimizer=optimizer))
                assert meetings <= most, (epoch, force, meetings)
        _, meetings = counting(checkpointer.wait)
        assert meetings <= 1, meetings


def ranks_that_write_together_meet_seldom(directory: Path, rank: int) -> None:
    """A sharded save: four at first, with a look whether all see the same storage; then three."""
    model, optimizer = zoo.build("fsdp")
    zoo.train((model, optimizer), 1, 1)
    checkpointer = Checkpointer(directory)
    for epoch, most in ((1, 4), (2, 3), (3, 3)):
        save = partial(checkpointer.checkpoint, epoch, model=model, optimizer=optimizer)
        _, meetings = counting(save)
        assert meetings <= most, (epoch, meetings)
        _, meetings = counting(checkpointer.wait)
        assert meetings <= 2, meetings


def a_spread_state_takes_one_meeting_more(directory: Path, rank: int) -> None:
    """An optimizer by keyword that is spread over the ranks is brought together first."""
    model = DistributedDataParallel(small_model())
    spread = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
    checkpointer = Checkpointer(directory, blocking=True)
    checkpointer.start(model)
    for epoch in (1, 2):
        save = partial(checkpointer.checkpoint, epoch, model=model, spread=spread)
        _, meetings = counting(save)
        of_torch = counting(lambda: spread.consolidate_state_dict(to=0))[1]
        assert meetings - of_torch <= 5, (meetings, of_torch)
