"""Ray's local mode: a training function in the driver's process, whose checkpoints are real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
from ray.train import RunConfig
from ray.train.v2._internal.execution.train_fn_utils import set_train_fn_utils

import ray_imuckpt
from conftest import same_bytes, small_model
from ray_imuckpt import Checkpointer
from support.runs.ray_loop import fit


def local_fit(checkpointer: Checkpointer, notes: Path, run_config: RunConfig | None = None) -> Any:
    """Run `loop` in Ray's local mode."""
    report = ray.train.report
    try:
        return fit(notes, checkpointer, 0, run_config or checkpointer.run_config())
    finally:
        ray.train.report = report
        set_train_fn_utils(None)  # Ray forgets to: for the tests to come it would be local mode


@pytest.mark.parametrize("url", ["directory", "memory://{}/run"])
def test_local_mode_leaves_a_checkpoint_that_can_be_loaded(tmp_path: Path, url: str) -> None:
    """Reported checkpoints are real directories, which outlive the run."""
    directory = url.format(tmp_path.name) if "://" in url else str(tmp_path / "run")
    checkpointer = Checkpointer(directory, save_every=2)
    result = local_fit(checkpointer, tmp_path / "notes")
    assert result.metrics["epoch"] == 6
    with result.checkpoint.as_directory() as path:
        model = ray_imuckpt.load(small_model(5), path)
    assert same_bytes(dict(model.state_dict()), dict(checkpointer.read(6).model))
    assert checkpointer.list_existing_checkpoint_indices() == [2, 4, 6]
    assert Checkpointer.of_result(result).list_existing_checkpoint_indices() == [2, 4, 6]
    with checkpointer.get(4).as_directory() as path:
        assert ray_imuckpt.load(small_model(5), path) is not None

    again = Checkpointer(directory, continue_from=4, save_every=5)
    result = local_fit(again, tmp_path / "notes-2")
    assert (tmp_path / "notes-2" / "starts-0").read_text().split() == ["5"]
    assert Path(result.checkpoint.path).name == "checkpoint=5", "epoch 6 reported metrics alone"
    assert result.metrics["epoch"] == 6


def test_a_script_may_become_local_mode(tmp_path: Path) -> None:
    """A process that has saved as a script reports to Ray once Ray runs it."""
    checkpointer = Checkpointer(tmp_path / "run", save_every=6)
    checkpointer.checkpoint(6, model=small_model())
    checkpointer.wait()
    result = local_fit(
        Checkpointer(tmp_path / "run", continue_from="none", save_every=6), tmp_path / "notes"
    )
    assert Path(result.checkpoint.path).name == "checkpoint=6"


def test_local_mode_without_a_directory_uses_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `dir`, local mode is a script as any other."""
    monkeypatch.chdir(tmp_path)
    local_fit(Checkpointer(save_every=3), tmp_path / "notes", RunConfig())
    assert Checkpointer(tmp_path).list_existing_checkpoint_indices() == [3, 6]
