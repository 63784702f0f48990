"""transformers' Trainer in the workers of Ray Train, by `ray.train.huggingface`."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from conftest import same_bytes
from ray_imuckpt import Checkpointer
from support.programs import run_program
from support.runs import ray_transformers


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_gang_that_loses_a_worker_in_mid_epoch_ends_as_one_without_ray(tmp_path: Path) -> None:
    """Ray restarts it, `train` goes on between two steps, and Ray knows each checkpoint."""
    broken, note, died = Checkpointer(tmp_path / "broken"), tmp_path / "note", tmp_path / "died"
    result = TorchTrainer(
        ray_transformers.loop,
        train_loop_config={"checkpointer": broken, "note": note, "dies": died},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=broken.run_config(failure_config=FailureConfig(max_failures=1)),
    ).fit()
    assert died.exists()
    assert note.read_text() in ("3", "6"), "of four steps an epoch"
    assert broken.list_existing_checkpoint_indices() == [3, 6, 9, 12]
    assert result.checkpoint is not None
    assert result.checkpoint.path == broken.path_to_checkpoint(12)
    assert result.metrics is not None
    assert result.metrics["loss"] == broken.read(12).metrics["loss"]

    whole = Checkpointer(tmp_path / "whole")
    ended = run_program("support.runs.ray_transformers", tmp_path / "whole")
    assert ended.returncode == 0, ended.stderr[-3000:]
    for part in ("model", "optimizer", "log", "ranks"):
        assert same_bytes(getattr(broken.read(12), part), getattr(whole.read(12), part)), part
