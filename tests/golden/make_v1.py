"""Made tests/golden/v1 once. Kept to tell what is in it; never run again for format 1."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ray_imuckpt import Checkpointer, PlateauDetector
from ray_imuckpt.schedules import Exponential


def main(directory: str) -> None:
    """Two epochs of a tiny model with a tied, a frozen and a complex tensor."""
    torch.manual_seed(1)
    model = nn.Module()
    model.embed = nn.Embedding(5, 3)
    model.head = nn.Linear(3, 5, bias=False)
    model.head.weight = model.embed.weight
    model.frozen = nn.Linear(2, 2).requires_grad_(requires_grad=False)
    model.register_buffer("phase", torch.tensor([1 + 2j], dtype=torch.complex128))
    model.register_buffer("low", torch.tensor([0.5, -1.0], dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    plateau = PlateauDetector(Exponential(0.1, 0.5), patience=2)
    checkpointer = Checkpointer(directory)
    checkpointer.start(model, optimizer, plateau=plateau)
    for epoch in (1, 2):
        model.head(model.embed(torch.arange(5))).sum().backward()
        optimizer.step()
        plateau.step(1.0)
        checkpointer.checkpoint(
            epoch,
            model=model,
            optimizer=optimizer,
            log=[{"epoch": e, "loss": 1.0 / e} for e in range(1, epoch + 1)],
            metrics={"loss": float("nan")},
            plateau=plateau,
            table={(1, "a"): {2.5, None}, "when": dt.date(2026, 11, 23)},
            array=np.arange(6, dtype=">i2").reshape(2, 3),
            raw=b"\x00\xff",
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parent / "v1"))
