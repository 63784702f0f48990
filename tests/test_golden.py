"""A checkpoint that was frozen when format 1 was settled stays readable for ever."""

from __future__ import annotations

import datetime as dt
import math
import shutil
from pathlib import Path

import numpy as np
import torch

from ray_imuckpt import Checkpointer

GOLDEN = Path(__file__).parent / "golden" / "v1"


def test_every_part_of_it_reads_as_it_did() -> None:
    """Values, dtypes, ties and the optimizer's state are those that were saved."""
    checkpointer = Checkpointer(GOLDEN)
    assert checkpointer.list_existing_checkpoint_indices() == [1, 2]
    for epoch in (1, 2):
        checkpointer.verify(epoch)
    loaded = checkpointer.read(2)
    assert loaded.log == [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}]
    assert math.isnan(loaded.metrics["loss"])
    assert set(loaded.model) == {
        "embed.weight", "head.weight", "frozen.weight", "frozen.bias", "phase", "low",
    }  # fmt: skip
    assert loaded.model["phase"].equal(torch.tensor([1 + 2j], dtype=torch.complex128))
    assert loaded.model["low"].equal(torch.tensor([0.5, -1.0], dtype=torch.bfloat16))
    assert loaded.model["head.weight"].equal(loaded.model["embed.weight"])
    # AdamW's second step, from the seed of make_v1.py
    assert round(loaded.model["embed.weight"].double().sum().item(), 4) == SUM_OF_EMBEDDING
    assert loaded.optimizer is not None
    assert loaded.optimizer["class"] == "AdamW"
    assert loaded.optimizer["param_groups"][0]["params"] == ["embed.weight"]
    assert loaded.optimizer["state"]["embed.weight"]["step"].item() == 2.0
    assert loaded.other["table"] == {(1, "a"): {2.5, None}, "when": dt.date(2026, 11, 23)}
    assert loaded.other["array"].dtype == np.dtype(">i2")
    assert loaded.other["array"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert loaded.other["raw"] == b"\x00\xff"
    assert loaded.objects == {"plateau"}
    assert set(loaded.ranks[0]) == {"random", "per_rank", "classes"}


def test_a_run_can_go_on_from_it(tmp_path: Path) -> None:
    """It is restored, and saves its next epoch beside it."""
    shutil.copytree(GOLDEN, tmp_path / "run")
    model = torch.nn.Module()
    model.embed = torch.nn.Embedding(5, 3)
    model.head = torch.nn.Linear(3, 5, bias=False)
    model.head.weight = model.embed.weight
    model.frozen = torch.nn.Linear(2, 2).requires_grad_(requires_grad=False)
    model.register_buffer("phase", torch.zeros(1, dtype=torch.complex128))
    model.register_buffer("low", torch.zeros(2, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([model.embed.weight], lr=9.0)
    started = Checkpointer(tmp_path / "run").start(model, optimizer)
    assert started.start_epoch == 3
    assert optimizer.param_groups[0]["lr"] == 0.1
    Checkpointer(tmp_path / "run").checkpoint(3, model=model, optimizer=optimizer)
    assert Checkpointer(tmp_path / "run").index_of_last_checkpoint() == 3


SUM_OF_EMBEDDING = -0.438
