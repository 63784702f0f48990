"""Lightning's Trainer in the workers of Ray Train, by `ray.train.lightning`."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.train import FailureConfig

from conftest import same_bytes
from ray_imuckpt import Checkpointer
from support.programs import run_program
from support.runs import ray_lightning


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_gang_that_loses_a_worker_in_mid_epoch_ends_as_one_that_does_not(tmp_path: Path) -> None:
    """Ray restarts it, `fit` goes on between two batches, and Ray knows each checkpoint."""
    broken = Checkpointer(tmp_path / "runs" / "broken")
    config = broken.run_config(failure_config=FailureConfig(max_failures=1))
    result = ray_lightning.fit(broken, tmp_path / "note", tmp_path / "died", config)
    assert (tmp_path / "died").exists()
    assert (tmp_path / "note").read_text() in ("3", "6"), "of four steps an epoch"
    assert broken.list_existing_checkpoint_indices() == [3, 6, 9, 12]
    assert result.checkpoint.path == broken.path_to_checkpoint(12)
    assert result.metrics["loss_epoch"] == broken.read(12).metrics["loss_epoch"]

    whole = Checkpointer(tmp_path / "whole")  # of two processes without Ray
    ended = run_program("support.runs.lightning_gang", whole.dir)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert whole.list_existing_checkpoint_indices() == [3, 6, 9, 12]
    for part in ("model", "optimizer", "log", "ranks"):
        assert same_bytes(getattr(broken.read(12), part), getattr(whole.read(12), part)), part
