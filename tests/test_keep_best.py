"""Which checkpoint `prune` takes for the best, and what it is told about that."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from ray_imuckpt import Best, Checkpointer, CheckpointNotFoundError, Retention


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ("loss", TypeError, "is a str; a tuple"),
        ({"loss": "min"}, TypeError, "is a dict; a tuple"),
        (("loss",), ValueError, "has 1 item"),
        ((), ValueError, "has 0 item"),
        (("loss", "min", 3, 4), ValueError, "has 4 item"),
        (("loss", "min", 0), ValueError, "keeps nothing"),
        (("loss", "min", 1.5), TypeError, "an int is wanted"),
        (("loss", "low"), ValueError, "the mode is 'min' or 'max'"),
        (("loss", None), ValueError, "the mode is 'min' or 'max'"),
        ((3, "min"), TypeError, "the name of a metric is a str"),
    ],
)
def test_a_keep_best_that_is_none(
    tmp_path: Path, value: Any, error: type[Exception], text: str
) -> None:
    """It is told at the call, and nothing is deleted."""
    checkpointer = Checkpointer(tmp_path, blocking=True)
    for epoch in (1, 2):
        checkpointer.checkpoint(epoch, model=nn.Linear(1, 1), metrics={"loss": epoch})
    with pytest.raises(error, match=re.escape(text)):
        checkpointer.prune(keep_last=1, keep_best=value)
    assert checkpointer.list_existing_checkpoint_indices() == [1, 2]


def test_epochs_without_the_metric_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that is validated now and then prunes at every epoch; at first there is no best."""
    checkpointer = Checkpointer(tmp_path, blocking=True)
    kept = {}
    for epoch in range(1, 12):
        metrics = {"val": epoch} if epoch % 5 == 0 else None
        checkpointer.checkpoint(epoch, model=nn.Linear(1, 1), metrics=metrics)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "ray_imuckpt"):
            checkpointer.prune(keep_last=2, keep_best=("val", "min"))
        assert ("No checkpoint has a number for the metric 'val'" in caplog.text) == (epoch < 5)
        kept[epoch] = checkpointer.list_existing_checkpoint_indices()
    assert kept[4] == [3, 4]
    assert kept[7] == [5, 6, 7]
    assert kept[11] == [5, 10, 11]


def test_a_run_is_told_once_that_its_metric_is_in_no_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At the first commit of many; who calls `prune` is answered each time, as above."""
    rules = Retention(keep_last=2, keep_best=("vall", "min"))
    with (
        caplog.at_level(logging.WARNING, "ray_imuckpt"),
        Checkpointer(tmp_path, blocking=True, retention=rules) as checkpointer,
    ):
        for epoch in (1, 2, 3, 4):
            checkpointer.checkpoint(epoch, model=nn.Linear(1, 1), metrics={"val": epoch})
    assert caplog.text.count("No checkpoint has a number for the metric 'vall'") == 1
    assert checkpointer.list_existing_checkpoint_indices() == [3, 4]


def test_keep_best_alone_deletes_nothing_while_no_best_is_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A metric that was misspelt must not cost a run its checkpoints; those there are, are told."""
    checkpointer = Checkpointer(tmp_path, blocking=True)
    for epoch in (1, 2, 3):
        checkpointer.checkpoint(epoch, model=nn.Linear(1, 1), metrics={"val": epoch, "by": "me"})
    assert checkpointer.prune(keep_best=("vall", "min")) == []
    assert "There are: val." in caplog.text
    with pytest.raises(CheckpointNotFoundError, match=r"There are: val\. Name one of these"):
        checkpointer.load(nn.Linear(1, 1), Best("vall", "min"))
    assert checkpointer.list_existing_checkpoint_indices() == [1, 2, 3]
