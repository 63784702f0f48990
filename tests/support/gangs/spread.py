"""Stories of models that are spread over the ranks in every way there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from conftest import same_bytes
from ray_imuckpt import Checkpointer
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
