"""Checkpoints that were frozen when format 1 was settled stay readable for ever."""

from __future__ import annotations

import datetime as dt
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from conftest import same_bytes
from golden.make_v1 import RANKS, build
from ray_imuckpt import Checkpointer

GOLDEN = Path(__file__).parent / "golden" / "v1"
SUMS = {1: -1.9244, 2: -0.438, 3: 1.0495}
"""Of the embedding after so many steps of AdamW, from the seed of make_v1.py."""


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_every_part_of_it_reads_as_it_did(epoch: int) -> None:
    """Whole tensors of one rank; the last one in pieces of four."""
    checkpointer = Checkpointer(GOLDEN)
    assert checkpointer.list_existing_checkpoint_indices() == [1, 2, 3]
    checkpointer.verify(epoch)
    loaded = checkpointer.read(epoch)
    assert loaded.step == {1: None, 2: 200, 3: 300}[epoch]
    assert loaded.log == [{"epoch": e, "loss": 1.0 / e} for e in range(1, epoch + 1)]
    assert math.isnan(loaded.metrics["loss"])
    assert set(loaded.model) == {
        "embed.weight", "head.weight", "conv.weight", "frozen.weight", "frozen.bias", "phase",
        "low",
    }  # fmt: skip
    phase = torch.tensor([[1 + 2j, 3], [0, -1j]], dtype=torch.complex128)
    assert loaded.model["phase"].equal(phase)
    assert loaded.model["low"].equal(torch.tensor([0.5, -1.0], dtype=torch.bfloat16))
    assert loaded.model["head.weight"] is loaded.model["embed.weight"]
    assert loaded.model["conv.weight"].stride() == build().get_parameter("conv.weight").stride()
    assert not loaded.model["conv.weight"].is_contiguous()
    assert loaded.frozen == {"frozen.weight", "frozen.bias"}
    assert round(loaded.model["embed.weight"].double().sum().item(), 4) == SUMS[epoch]
    assert loaded.optimizer is not None
    assert loaded.optimizer["class"] == "AdamW"
    assert loaded.optimizer["param_groups"][0]["params"] == ["embed.weight", "conv.weight"]
    assert loaded.optimizer["state"]["embed.weight"]["step"].item() == epoch
    assert loaded.other["table"] == {(1, "a"): {2.5, None}, "when": dt.date(2026, 11, 23)}
    assert loaded.other["array"].dtype == np.dtype(">i2")
    assert loaded.other["array"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert loaded.other["raw"] == b"\x00\xff"
    assert loaded.objects == {"plateau"}
    assert len(loaded.ranks) == loaded.manifest.world_size == (RANKS if epoch == 3 else 1)
    assert all(set(rank) == {"random", "per_rank", "classes"} for rank in loaded.ranks)


def test_pieces_and_several_files_of_a_part_are_in_it() -> None:
    """Else it would show less than it should."""
    files = Checkpointer(GOLDEN).read(3).manifest.files
    assert {f.rank for f in files if f.part == "model"} == set(range(RANKS))
    assert {f.rank for f in files if f.name.endswith(".json")} == set(range(RANKS))
    stored = [(GOLDEN / "checkpoint=3" / f.name).read_bytes() for f in files if f.part == "model"]
    assert all(b"imuckpt.pieces" in data for data in stored)


def test_a_reader_that_knows_the_norm_alone_puts_pieces_together() -> None:
    """With safetensors, NumPy and one key of the metadata."""
    whole: dict[str, Any] = {}
    for path in sorted((GOLDEN / "checkpoint=3").glob("model-*")):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            notes = json.loads(metadata.get("imuckpt.pieces", "{}"))
            double = json.loads(metadata.get("imuckpt.dtypes", "{}"))
            for name in sorted(file.keys()):
                piece = file.get_tensor(name)
                if double.get(name) == "complex128":
                    piece = torch.view_as_complex(piece)
                if name in notes:
                    offset, shape = notes[name]["offset"], notes[name]["shape"]
                    target = whole.setdefault(name, torch.zeros(shape, dtype=piece.dtype))
                    begins = zip(offset, piece.shape, strict=True)
                    target[tuple(slice(begin, begin + size) for begin, size in begins)] = piece
                else:
                    whole[name] = piece
    expected = Checkpointer(GOLDEN).read(3)
    names = set(expected.model) - expected.frozen - {"head.weight"}
    assert same_bytes(whole, {name: expected.model[name] for name in names})


@pytest.mark.parametrize("epoch", [2, 3])
def test_a_run_can_go_on_from_it(tmp_path: Path, epoch: int) -> None:
    """In place, and what it then writes is read."""
    shutil.copytree(GOLDEN, tmp_path / "run")
    expected = Checkpointer(GOLDEN).read(epoch).model
    model = build()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=9.0)
    checkpointer = Checkpointer(tmp_path / "run", blocking=True)
    started = checkpointer.start(model, optimizer, continue_from=epoch)
    assert started.start_epoch == epoch + 1
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert same_bytes(dict(model.state_dict()), expected)
    checkpointer.checkpoint(epoch + 1, model=model, optimizer=optimizer)
    assert Checkpointer(tmp_path / "run").index_of_last_checkpoint() == epoch + 1
