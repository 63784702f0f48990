"""Stories of models that are spread over the ranks in every way there is."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from conftest import same_bytes
from ray_imuckpt import Checkpointer
from ray_imuckpt.runtime import preemption
from support.gangs import zoo
from support.gangs.common import same_everywhere


def stored(directory: Path, epoch: int) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint's model and optimizer, as `zoo.whole` names them."""
    loaded = Checkpointer(directory).read(epoch)
    found: dict[str, Any] = dict(loaded.model)
    states = {} if loaded.optimizer is None else loaded.optimizer["state"]
    for name, values in states.items():
        found |= {f"{name} {key}": value for key, value in values.items()}
    return {name: found[name].contiguous() for name in sorted(found)}


def every_layout_is_saved_and_comes_back(directory: Path, rank: int) -> None:
    """What is stored is byte for byte what torch gathers; and training goes on from it."""
    for name in (*zoo.names(), *zoo.OTHERS):
        here = directory / name
        run = zoo.build(name)
        zoo.train(run, 1, 2)
        checkpointer = Checkpointer(here)
        checkpointer.checkpoint(2, model=run[0], optimizer=run[1])
        expected = zoo.whole(run)
        zoo.train(run, 3, 4)
        checkpointer.wait()
        found = stored(here, 2)
        if name == "tied":
            assert same_bytes(found.pop("last.weight"), found["embedding.weight"])
        assert same_bytes(found, expected), (name, set(found) ^ set(expected))
        same_everywhere(str(sorted(found)))
        for stepped in (0, 1):  # without and with state of the optimizer
            again = zoo.build(name, seed=1)
            zoo.train(again, 7, 6 + stepped)
            Checkpointer(here).start(*again)
            assert same_bytes(zoo.whole(again), expected), name
            zoo.train(again, 3, 4)
            assert same_bytes(zoo.whole(again), zoo.whole(run)), name


def a_sharded_gang_that_is_told_to_go_is_resumed(directory: Path, rank: int) -> None:
    """One rank gets SIGTERM: all write the forced save, in mid-epoch, and the run is the same."""
    whole, run, again = (zoo.build("fsdp", seed) for seed in (0, 0, 1))
    zoo.train(whole, 1, 6)
    checkpointer = Checkpointer(directory, save_every=10)
    checkpointer.start(*run)
    before = signal.getsignal(signal.SIGTERM)
    with mock.patch.object(preemption, "_WATCH", preemption.Watch()):
        step = 0
        while not checkpointer.preempted():
            step += 1
            zoo.train(run, step, step)
            if (rank, step) == (1, 4):
                signal.raise_signal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)
    pending = checkpointer.checkpoint(
        1, model=run[0], optimizer=run[1], step=step, force=True, at=step
    )
    assert pending is not None
    checkpointer.wait()
    files = checkpointer.read(1).manifest.files
    for part in ("model", "optimizer", "state"):
        assert {file.rank for file in files if file.part == part} == {0, 1}
    started = Checkpointer(directory, save_every=10).start(*again)
    assert started.other == {"at": 4}
    zoo.train(again, started.other["at"] + 1, 6)
    assert same_bytes(zoo.whole(again), zoo.whole(whole))
