"""Stories in which one layout continues from what another one has saved."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist

from conftest import same_bytes
from ray_imuckpt import Checkpointer
from support.gangs import zoo
from support.gangs.spread import stored


def some_layouts_continue_from_others(directory: Path, rank: int) -> None:
    """From another of the same gang; those that need four ranks from one of two.

    `make soak` tries all pairs.
    """
    names = [*zoo.PLAIN, "alone"]
    if dist.get_world_size() == 2:
        _continue(directory, {t: [names[n - 4]] for n, t in enumerate(names)})
    else:
        _continue_from_two(directory, {name: ["fsdp"] for name in zoo.FOUR})


def all_layouts_continue_from_all_others(directory: Path, rank: int) -> None:
    """Byte for byte, and so after two more steps."""
    names = [*zoo.names(), "alone"]
    _continue(directory, dict.fromkeys(names, names))
    if dist.get_world_size() == 4:
        _continue_from_two(directory, {name: [*zoo.PLAIN, "alone"] for name in names})


def _continue(directory: Path, sources: dict[str, list[str]]) -> None:
    saved = {name: _save(directory, name) for name in sorted({*chain(*sources.values())})}
    for target, names in sources.items():
        for name in names:
            _compare(target, directory / name, saved[name])


def _continue_from_two(directory: Path, sources: dict[str, list[str]]) -> None:
    """Continue from what the gang of two has saved, which has told the same story before."""
    before = directory.parents[2] / directory.parent.name / directory.name
    logging.disable(logging.WARNING)  # of another number of ranks
    for target, names in sources.items():
        for name in names:
            _compare(target, before / name, stored(before / name, 2))
    logging.disable(logging.NOTSET)


def _save(directory: Path, name: str) -> dict[str, torch.Tensor]:
    run = zoo.build(name)
    zoo.train(run, 1, 2)
    checkpointer = Checkpointer(directory / name)
    checkpointer.checkpoint(2, model=run[0], optimizer=run[1])
    checkpointer.wait()
    return stored(directory / name, 2)


def _compare(target: str, source: Path, expected: dict[str, torch.Tensor]) -> None:
    """Restore into an optimizer that has no state, and into one that has: the same from then on."""
    runs: Sequence[zoo.Run] = [zoo.build(target, seed) for seed in (1, 2)]
    zoo.train(runs[1], 7, 7)
    for run in runs:
        Checkpointer(source).start(*run)
        assert same_bytes(zoo.whole(run), expected), (target, source)
        zoo.train(run, 3, 4)
    assert same_bytes(zoo.whole(runs[0]), zoo.whole(runs[1])), (target, source)
