"""Made tests/golden/v1 once. Kept to tell what is in it; never run again for format 1."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1]))
from ray_imuckpt import Checkpointer, PlateauDetector
from ray_imuckpt.schedules import Exponential
from support.pieces import Sharded, grid

RANKS = 4


def build() -> nn.Module:
    """A tiny model with tied, frozen and complex tensors, and one in another order in memory."""
    torch.manual_seed(1)
    model = nn.Module()
    model.embed = nn.Embedding(5, 3)
    model.head = nn.Linear(3, 5, bias=False)
    model.head.weight = model.embed.weight
    model.conv = nn.Conv2d(2, 3, 2, bias=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload] # torch has it
    model.frozen = nn.Linear(2, 2).requires_grad_(requires_grad=False)
    model.register_buffer("phase", torch.tensor([[1 + 2j, 3], [0, -1j]], dtype=torch.complex128))
    model.register_buffer("low", torch.tensor([0.5, -1.0], dtype=torch.bfloat16))
    return model


def main(directory: str) -> None:
    """Three epochs: written whole, whole with a step, and in pieces by four ranks."""
    model = build()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    plateau = PlateauDetector(Exponential(0.1, 0.5), patience=2)
    checkpointer = Checkpointer(directory, blocking=True)
    checkpointer.start(model, optimizer, plateau=plateau)
    for epoch in (1, 2, 3):
        head, embed = model.get_submodule("head"), model.get_submodule("embed")
        loss = head(embed(torch.arange(5))).sum() + model.get_parameter("conv.weight").sum()
        loss.backward()
        optimizer.step()
        plateau.step(1.0)
        checkpointer.checkpoint(
            epoch,
            model=model,
            optimizer=optimizer,
            log=[{"epoch": e, "loss": 1.0 / e} for e in range(1, epoch + 1)],
            metrics={"loss": float("nan")},
            step=None if epoch == 1 else 100 * epoch,
            plateau=plateau,
            table={(1, "a"): {2.5, None}, "when": dt.date(2026, 11, 23)},
            array=np.arange(6, dtype=">i2").reshape(2, 3),
            raw=b"\x00\xff",
        )
    Sharded(Path(directory) / "checkpoint=3", RANKS, grid).write()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "v1"))
