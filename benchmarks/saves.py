"""Stall, time until durable."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks import limits, peers
from benchmarks.measure import Figure, alone, medians
from ray_imuckpt import Checkpointer

COPY = "copy into mapped memory (limit)"
WRITE = "raw parallel write + fsync (limit)"


def stall(
    root: Path, model: nn.Module, optimizer: torch.optim.Optimizer, repeats: int
) -> dict[str, Figure]:
    """How long the training loop stands still, in seconds."""
    tensors = limits.tensors_of(model, optimizer)
    eager = Checkpointer(root / "eager", progress=False)
    overlap = Checkpointer(root / "overlap", progress=False, snapshot="overlap")
    rows = {
        COPY: alone(limits.copier(tensors)),
        "clone() of everything": alone(lambda: [t.clone() for t in tensors]),
    }
    for name, checkpointer in (("ray_imuckpt", eager), ("ray_imuckpt, overlap", overlap)):
        checkpointer.start(model, optimizer, continue_from="none")
        save = partial(checkpointer.checkpoint, 1, model=model, optimizer=optimizer)
        rows[name] = (save, checkpointer.wait)
    with peers.process_group(root):
        rows |= peers.asynchronous(root, model, optimizer)
        rows |= {n: alone(call) for n, call in peers.savers(root, model, optimizer).items()}
        return medians(rows, repeats)


def durable(
    root: Path, model: nn.Module, optimizer: torch.optim.Optimizer, repeats: int
) -> dict[str, Figure]:
    """How long until a power cut would lose nothing, in seconds."""
    background = Checkpointer(root / "background", progress=False)
    blocking = Checkpointer(root / "blocking", progress=False, blocking=True)
    for checkpointer in (background, blocking):
        checkpointer.start(model, optimizer, continue_from="none")

    def whole() -> None:
        background.checkpoint(1, model=model, optimizer=optimizer)
        background.wait()

    rows = {
        WRITE: alone(limits.writer(root / "raw", limits.tensors_of(model, optimizer))),
        "ray_imuckpt, in the background": alone(whole),
        "ray_imuckpt, blocking": alone(
            lambda: blocking.checkpoint(1, model=model, optimizer=optimizer)
        ),
    }
    with peers.process_group(root):
        for name, call in peers.savers(root, model, optimizer).items():
            rows[f"{name} + sync"] = alone(call, limits.sync)
        return medians(rows, repeats)
