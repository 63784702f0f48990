"""What reads a checkpoint without a run: load, read, get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ray_imuckpt
from conftest import small_model
from ray_imuckpt import Checkpointer, CheckpointNotFoundError


def test_load_takes_an_epoch_a_path_a_ray_checkpoint_or_none(trained: Any) -> None:
    """However a user names a checkpoint, it is the same one."""
    directory = trained(3)
    checkpointer = Checkpointer(directory)
    expected = {e: checkpointer.read(e).model["0.weight"].clone() for e in (2, 3)}
    assert not torch.equal(expected[2], expected[3])

    def loaded(checkpoint: Any) -> torch.Tensor:
        model = small_model(seed=5)
        assert checkpointer.load(model, checkpoint) is model
        return model.state_dict()["0.weight"]

    assert torch.equal(loaded(2), expected[2])
    assert all(torch.equal(loaded(last), expected[3]) for last in (None, "last", "latest"))
    assert torch.equal(loaded(checkpointer.path_to_checkpoint(2)), expected[2])
    assert torch.equal(loaded(directory / "checkpoint=2"), expected[2])
    assert torch.equal(loaded(f"file://{directory}/checkpoint=2"), expected[2])
    assert torch.equal(loaded(checkpointer.get(2)), expected[2])
    model = ray_imuckpt.load(small_model(seed=5), directory / "checkpoint=2")
    assert torch.equal(model.state_dict()["0.weight"], expected[2])


def test_load_changes_neither_random_state_nor_training_mode(trained: Any) -> None:
    """A test in the middle of training does not disturb it."""
    directory = trained(2)
    model = small_model().eval()
    before = torch.get_rng_state()
    Checkpointer(directory).load(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training


def test_read_gives_each_part(trained: Any) -> None:
    """All that was saved can be looked at without a run."""
    loaded = Checkpointer(trained(3)).read(2)
    assert loaded.epoch == 2
    assert set(loaded.model) == set(small_model().state_dict())
    assert loaded.optimizer is not None
    assert loaded.optimizer["class"] == "AdamW"
    assert set(loaded.optimizer["state"]) == {
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "3.weight",
    }
    assert [group["params"] for group in loaded.optimizer["param_groups"]] == [
        ["0.weight", "1.weight", "3.weight"],
        ["0.bias", "1.bias"],
    ]
    assert [entry["epoch"] for entry in loaded.log] == [1, 2]
    assert loaded.metrics == {"loss": loaded.log[1]["loss"]}
    assert "last_epoch" in loaded.other["scheduler"]


def test_nothing_to_load_is_an_error_that_says_where(tmp_path: Path) -> None:
    """An empty directory is most often a wrong one."""
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match=str(tmp_path)):
        checkpointer.load(small_model())
    with pytest.raises(FileNotFoundError):
        checkpointer.read(4)
    with pytest.raises(ValueError, match="checkpoint=-1 is negative"):
        checkpointer.read(-1)
    with pytest.raises(CheckpointNotFoundError, match="checkpoint=4"):
        checkpointer.get(4)
    with pytest.raises(CheckpointNotFoundError, match=r"Checkpointer\(dir\)\.load\(model\)"):
        ray_imuckpt.load(small_model(), tmp_path)


def test_device_moves_the_model_first(trained: Any) -> None:
    """The bytes go to where the model is wanted."""
    model = Checkpointer(trained(1)).load(small_model(), device="cpu")
    assert all(p.device.type == "cpu" for p in model.parameters())
