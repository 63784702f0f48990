"""Restores from a warm page cache: everything, and the model alone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from benchmarks import limits, peers
from benchmarks.measure import alone, medians, table
from ray_imuckpt import Checkpointer

READ = "raw readinto the live tensors (limit)"
HASHED = "the same, hashed on the way"


def tables(root: Path, model: nn.Module, optimizer: torch.optim.Optimizer, repeats: int) -> None:
    """Print the tables."""
    checkpointer = Checkpointer(root / "restore", progress=False, blocking=True)
    checkpointer.start(model, optimizer, continue_from="none")
    checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    directory = Path(checkpointer.path_to_checkpoint(1))
    with peers.process_group(root):
        for save in peers.savers(root, model, optimizer).values():
            save()
        loaders = peers.loaders(root, model, optimizer)
        state = limits.by_name(model, optimizer)
        rows = {
            READ: alone(limits.reader(directory, state)),
            HASHED: alone(limits.reader(directory, state, hashed=True)),
            "ray_imuckpt": alone(lambda: checkpointer.start(model, optimizer)),
        }
        rows |= {name: alone(call) for name, call in loaders.items()}
        table("full restore into live objects", medians(rows, repeats), READ)

        fresh = torch.optim.AdamW(model.parameters())

        def forget() -> None:
            fresh.state.clear()

        rows = {
            READ: alone(limits.reader(directory, state)),
            "the same, moments into fresh memory": alone(limits.fresh_reader(directory, model)),
            "ray_imuckpt": (lambda: checkpointer.start(model, fresh), forget),
        }
        rows |= {
            name: (call, forget)
            for name, call in peers.loaders(root, model, fresh).items()
            if name == "torch.load"  # the others ask for state to load into
        }
        table("full restore into an optimizer that has not stepped", medians(rows, repeats), READ)
    rows = {
        READ: alone(limits.reader(directory, limits.by_name(model))),
        HASHED: alone(limits.reader(directory, limits.by_name(model), hashed=True)),
        "ray_imuckpt.load": alone(lambda: checkpointer.load(model, 1)),
    }
    table("model only", medians(rows, repeats), READ)
