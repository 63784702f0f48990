"""The best checkpoint by a metric: its index, and loading it by that word."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ray_imuckpt import Checkpointer, CheckpointNotFoundError, Retention

BY_LOSS = Retention(keep_best=("loss", "min", 2), keep_last=10)


def filled(value: float) -> nn.Module:
    """Return a model of this number."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def trained(directory: Path, losses: dict[int, float | None], **options: object) -> Checkpointer:
    """Save epochs with these losses, each with a model of its epoch's number."""
    checkpointer = Checkpointer(directory, blocking=True, **options)  # type: ignore[arg-type]
    for epoch, loss in losses.items():
        metrics = None if loss is None else {"loss": loss}
        checkpointer.checkpoint(epoch, model=filled(epoch), metrics=metrics)
    return checkpointer


LOSSES = {1: None, 2: 0.5, 3: 0.25, 4: float("nan"), 5: 0.25, 6: 0.75, 7: None}


def test_the_best_is_the_latest_of_those_with_the_best_number(tmp_path: Path) -> None:
    """Epochs without the metric, or without a number, are passed over."""
    checkpointer = trained(tmp_path, LOSSES)
    assert checkpointer.index_of_best("loss", "min") == 5
    assert checkpointer.index_of_best("loss", "max") == 6
    assert checkpointer.index_of_best("accuracy", "max") is None


def test_the_best_can_be_loaded_by_that_word(tmp_path: Path) -> None:
    """What decides was said once, with the rules."""
    checkpointer = trained(tmp_path, LOSSES, retention=BY_LOSS)
    assert checkpointer.index_of_best() == 5
    loaded = checkpointer.load(filled(0), "best")
    assert torch.equal(loaded.state_dict()["weight"], torch.tensor([[5.0]]))
    assert checkpointer.read("best").epoch == 5


def test_without_a_metric_the_word_is_an_error(tmp_path: Path) -> None:
    """Which one is the best is not guessed."""
    for checkpointer in (
        trained(tmp_path, LOSSES),
        Checkpointer(tmp_path, retention=Retention(keep_last=1)),
    ):
        with pytest.raises(ValueError, match="depends on a metric"):
            checkpointer.load(filled(0), "best")
        with pytest.raises(ValueError, match="depends on a metric"):
            checkpointer.index_of_best()
        with pytest.raises(ValueError, match="mode is 'min' or 'max'"):
            checkpointer.index_of_best("loss", "low")


def test_no_number_for_the_metric_is_an_error_that_names_it(tmp_path: Path) -> None:
    """A metric that was misspelt loads nothing else instead."""
    rules = Retention(keep_best=("losss", "min"), keep_last=10)
    checkpointer = trained(tmp_path, LOSSES, retention=rules)
    with pytest.raises(CheckpointNotFoundError, match="'losss'"):
        checkpointer.load(filled(0), "best")


def test_an_abandoned_branch_has_no_best(tmp_path: Path) -> None:
    """What a run has left behind is not what it is judged by."""
    trained(tmp_path, LOSSES)
    checkpointer = Checkpointer(tmp_path, continue_from=2, blocking=True, retention=BY_LOSS)
    checkpointer.start(filled(0))
    checkpointer.checkpoint(8, model=filled(8), metrics={"loss": 0.9})
    assert checkpointer.index_of_best() == 2


def test_a_directory_of_that_name_is_a_path_when_it_looks_like_one(tmp_path: Path) -> None:
    """A path has a separator."""
    trained(tmp_path, {1: 1.0})
    (tmp_path / "checkpoint=1").rename(tmp_path / "best")
    loaded = Checkpointer(tmp_path).load(filled(0), tmp_path / "best")
    assert torch.equal(loaded.state_dict()["weight"], torch.tensor([[1.0]]))
