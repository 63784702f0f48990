"""Retention and tolerated failures inside a gang of Ray Train: what Ray knows is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.train import CheckpointConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from conftest import small_model
from ray_imuckpt import Checkpointer, CheckpointNotFoundError, Retention
from ray_imuckpt.storage import local


def loop(config: dict[str, Any]) -> None:
    """Save six epochs; what `config` names is written to a disk that is full."""
    write = local.LocalStorage.write

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    model = small_model()
    with config["checkpointer"] as checkpointer:
        checkpointer.start(model)
        for epoch in range(1, 7):
            local.LocalStorage.write = full if epoch in config["full"] else write  # type: ignore[assignment,method-assign]
            checkpointer.checkpoint(epoch, model=model, metrics={"epoch": epoch})
            checkpointer.wait()


def fit(checkpointer: Checkpointer, run_config: RunConfig, *full: int, workers: int = 1) -> Any:
    """Run `loop` on a gang."""
    return TorchTrainer(
        loop,
        train_loop_config={"checkpointer": checkpointer, "full": full},
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run_config=run_config,
    ).fit()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_failed_save_is_reported_without_a_checkpoint_and_old_ones_go(tmp_path: Path) -> None:
    """Ray registers what is committed, in order; its last one is there and can be loaded."""
    directory = tmp_path / "runs" / "gang"
    checkpointer = Checkpointer(
        directory, on_save_error="warn", retention=Retention(keep_last=2, keep_every=2)
    )
    result = fit(checkpointer, checkpointer.run_config(), 3, 4, workers=2)
    assert result.error is None
    assert Path(result.checkpoint.path).name == "checkpoint=6"
    registered = [Path(saved.path).name for saved, _ in result.best_checkpoints]
    assert registered == [f"checkpoint={epoch}" for epoch in (1, 2, 5, 6)]
    assert [metrics["epoch"] for _, metrics in result.best_checkpoints] == [1, 2, 5, 6]
    assert Checkpointer(directory).list_existing_checkpoint_indices() == [2, 5, 6]
    checkpointer.load(small_model(3), result.checkpoint)
    again = fit(checkpointer, checkpointer.run_config())  # Ray names 1, which is gone
    assert again.error is None


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_where_ray_deletes_the_rules_are_left_to_it(tmp_path: Path) -> None:
    """Ray fails on a checkpoint that it is to delete and that is gone already."""
    directory = tmp_path / "runs" / "gang"
    checkpointer = Checkpointer(directory, retention=Retention(keep_last=1))
    rays = RunConfig(
        storage_path=str(tmp_path / "runs"),
        name="gang",
        checkpoint_config=CheckpointConfig(num_to_keep=3),
    )
    result = fit(checkpointer, rays)
    assert result.error is None
    assert Checkpointer(directory).list_existing_checkpoint_indices() == [4, 5, 6]


def test_two_that_delete_are_refused_on_the_driver(tmp_path: Path) -> None:
    """It is told before any worker is started."""
    checkpointer = Checkpointer(tmp_path / "run", retention=Retention(keep_last=1))
    both = CheckpointConfig(num_to_keep=3)
    with pytest.raises(ValueError, match="num_to_keep=3"):
        checkpointer.run_config(checkpoint_config=both)
    best = CheckpointConfig(checkpoint_score_attribute="loss", checkpoint_score_order="min")
    with pytest.raises(ValueError, match=r"keep_best=\('loss', 'min'\)"):
        checkpointer.run_config(checkpoint_config=best)
    assert checkpointer.run_config(checkpoint_config=CheckpointConfig()).name == "run"
    assert Checkpointer(tmp_path / "run").run_config(checkpoint_config=both).name == "run"


def test_what_ray_names_and_a_rule_has_deleted_is_told_so(tmp_path: Path) -> None:
    """Result.best_checkpoints is Ray's list of what was reported."""
    checkpointer = Checkpointer(tmp_path, retention=Retention(keep_last=1), blocking=True)
    checkpointer.checkpoint(1, model=small_model())
    named = checkpointer.get(1)
    checkpointer.checkpoint(2, model=small_model())
    with pytest.raises(CheckpointNotFoundError, match="of_result") as caught:
        checkpointer.read(named)
    assert "checkpoint=1" in str(caught.value)
