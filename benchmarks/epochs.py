"""What saving at the end of every epoch adds to a real training loop on the CPU.

The background save and the training share the cores here: what is added is not only the stall but
also the processor time of hashing and writing. On a GPU machine that time is not the training's.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks import peers
from benchmarks.measure import Figure, table
from ray_imuckpt import Checkpointer

NONE = "no saves (limit)"


def tables(root: Path, epochs: int, steps: int = 6, width: int = 2048, layers: int = 4) -> None:
    """Train with each kind of save in turn; medians over epochs."""
    torch.manual_seed(0)
    blocks = [layer for _ in range(layers) for layer in (nn.Linear(width, width), nn.ReLU())]
    model = nn.Sequential(*blocks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = torch.randn(1024, width)

    def step() -> float:
        began = time.perf_counter()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        return time.perf_counter() - began

    step()
    eager = Checkpointer(root / "epochs-eager", progress=False)
    overlap = Checkpointer(root / "epochs-overlap", progress=False, snapshot="overlap")
    blocking = Checkpointer(root / "epochs-blocking", progress=False, blocking=True)
    number = 0

    def ours(checkpointer: Checkpointer) -> None:
        nonlocal number
        number += 1
        checkpointer.checkpoint(number % 3, model=model, optimizer=optimizer)

    savers = peers.savers(root, model, optimizer)
    kinds: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        NONE: (int, int),
        "ray_imuckpt, overlap": (lambda: ours(overlap), overlap.wait),
        "ray_imuckpt": (lambda: ours(eager), eager.wait),
        "ray_imuckpt, blocking": (lambda: ours(blocking), int),
        "torch.save": (savers["torch.save"], int),
        "Ray's recipe": (savers["Ray's recipe"], int),
    }
    whole: dict[str, list[float]] = {name: [] for name in kinds}
    first: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(epochs + 1):
        for name, (save, wait) in kinds.items():
            began = time.perf_counter()
            save()
            step()
            first[name].append(time.perf_counter() - began)
            for _ in range(steps - 1):
                step()
            whole[name].append(time.perf_counter() - began)
            wait()
    size = sum(p.nbytes for p in model.parameters()) * 3 / 1e6
    table(
        f"the save and the step after it, {size:.0f} MB of state",
        {name: Figure(statistics.median(t[1:]), min(t[1:])) for name, t in first.items()},
        NONE,
    )
    table(
        f"an epoch of {steps} such steps with a save",
        {name: Figure(statistics.median(t[1:]), min(t[1:])) for name, t in whole.items()},
        NONE,
    )
    for name in ("eager", "overlap", "blocking"):
        shutil.rmtree(root / f"epochs-{name}")
