"""A run with a plateau detector, interrupted and resumed; and the page for users of Julia."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import same_bytes, small_model
from ray_imuckpt import Checkpointer, PlateauDetector
from ray_imuckpt.schedules import Exponential
from support.plateaus import rates

LOSS_CURVE = [5.0, 4.0, 4.1, 4.2, 3.0, 3.0, 3.0, 3.0, math.nan, 3.5, 2.0, 2.5, 2.5, 2.5, 2.5]


def run(
    directory: Path,
    last: int,
    schedule: Any,
    change_at: int | None = None,
    tensor_rate: bool = False,
) -> tuple[list[float], torch.nn.Module, torch.optim.Optimizer]:
    """Train to epoch `last`; returns the rates of the epochs so far, as the log holds them.

    Args:
        directory: Of the checkpoints.
        last: The last epoch.
        schedule: Of the detector that this run builds.
        change_at: Before which epoch this run begins the schedule anew.
        tensor_rate: Whether the optimizer's rate is a tensor.
    """
    model = small_model().eval()
    rate: Any = torch.tensor(schedule(1), dtype=torch.float64) if tensor_rate else schedule(1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    plateau = PlateauDetector(schedule, patience=2)
    checkpointer = Checkpointer(directory)
    started = checkpointer.start(model, optimizer, plateau=plateau)
    log = started.log
    for epoch in range(started.start_epoch, last + 1):
        if epoch == change_at:
            plateau.adjust(optimizer, schedule)
        log.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.zero_grad()
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
        if plateau.step(LOSS_CURVE[epoch - 1]):
            plateau.adjust(optimizer)
        checkpointer.checkpoint(epoch, model=model, optimizer=optimizer, log=log, plateau=plateau)
    return log, model, optimizer


@pytest.mark.parametrize("tensor_rate", [False, True])
def test_resumed_with_the_same_schedule_it_is_the_same_run(
    tmp_path: Path, tensor_rate: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped after every epoch: the same rates, weights and optimizer as never interrupted."""
    schedule = Exponential(2.0**-7, 0.5)
    whole, model, optimizer = run(tmp_path / "whole", 15, schedule, tensor_rate=tensor_rate)
    for last in range(1, 16):
        parts, again, same = run(tmp_path / "parts", last, schedule, tensor_rate=tensor_rate)
        assert parts == whole[:last]
    assert same_bytes(dict(again.state_dict()), dict(model.state_dict()))
    assert rates(same) == rates(optimizer)
    # plateaus, worked out by hand, are at the ends of epochs 4, 7, 9, 13 and 15
    spans = [-7] * 4 + [-8] * 3 + [-9] * 2 + [-10] * 4 + [-11] * 2
    assert [math.log2(rate) for rate in whole] == spans
    assert not caplog.records


def test_resumed_with_another_schedule_adjust_changes_course(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is warned of, and the new schedule begins where `adjust` is told to."""
    old, new = Exponential(2.0**-7, 0.5), Exponential(2.0**-3, 0.25)
    run(tmp_path, 8, old)
    with caplog.at_level(logging.WARNING, "ray_imuckpt"):
        log, _, _ = run(tmp_path, 11, new, change_at=9)
    assert "saved with the schedule {'kind': 'exponential', 'start': 0.0078125" in caplog.text
    assert [math.log2(rate) for rate in log[6:]] == [-8, -9, -3, -5, -5]


def test_a_changed_course_survives_being_killed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A script that builds the new schedule and adjusts at a given epoch may run many times."""
    old, new = Exponential(2.0**-7, 0.5), Exponential(2.0**-3, 0.25)
    for name in ("whole", "parts"):
        run(tmp_path / name, 8, old)
    whole, _, _ = run(tmp_path / "whole", 15, new, change_at=9)
    caplog.clear()
    for last in range(9, 16):
        parts, _, _ = run(tmp_path / "parts", last, new, change_at=9)
        assert parts == whole[:last]
    assert len(caplog.records) == 1, "only where the course is changed"


def test_resumed_with_another_schedule_and_left_alone_the_rate_stays_until_adjust(
    tmp_path: Path,
) -> None:
    """`start` never changes course: it goes on at the state reached, on the new schedule."""
    run(tmp_path, 8, Exponential(2.0**-7, 0.5))
    log, _, _ = run(tmp_path, 10, Exponential(2.0**-3, 0.5))
    # epoch 9 has the restored rate; the plateau at its end moves to state 4 of the new schedule
    assert [math.log2(rate) for rate in log[7:]] == [-9, -9, -6]
