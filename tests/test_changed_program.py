"""A program that was changed between two starts: what is told, and that doing so leads on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ray_imuckpt import Checkpointer, StateMismatchError
from ray_imuckpt.state.optimizer_options import changed, options_of


def test_a_layer_is_added_by_doing_what_the_errors_say(tmp_path: Path) -> None:
    """Names first, then the optimizer: in the end the model has what fits, the optimizer is new."""
    shallow: Any = nn.Sequential(nn.Linear(2, 2))
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.checkpoint(1, model=shallow, optimizer=torch.optim.Adam(shallow.parameters()))
    deep: Any = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = torch.optim.Adam(deep.parameters())
    with pytest.raises(StateMismatchError, match="or pass strict=False to load what fits"):
        checkpointer.start(deep, optimizer)
    with pytest.raises(StateMismatchError, match=r"or pass optimizer=None to start\(\)"):
        checkpointer.start(deep, optimizer, strict=False)
    assert not torch.equal(deep[0].weight, shallow[0].weight)
    assert checkpointer.start(deep, strict=False).start_epoch == 2
    assert torch.equal(deep[0].weight, shallow[0].weight)
    assert checkpointer.left_out.missing == ("1.bias", "1.weight")


def _optimizer(schedule: str, rate: float, decay: float = 0.1) -> torch.optim.Optimizer:
    """Return an optimizer that was built, or has gone on by two steps of a schedule."""
    model = nn.Linear(1, 1)
    groups: list[dict[str, Any]] = [
        {"params": [model.weight], "betas": (0.5, 0.9)},
        {"params": [model.bias]},
    ]
    rates: Any = torch.tensor(rate) if schedule == "tensor" else rate
    optimizer = torch.optim.AdamW(groups, lr=rates, weight_decay=decay)
    if schedule == "cycle":
        torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=9)
    if schedule == "steps":
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
    return optimizer


@pytest.mark.parametrize(
    ("schedule", "name"),
    [("", "lr"), ("tensor", "lr"), ("steps", "initial_lr"), ("cycle", "max_lr")],
)
def test_options_that_were_chosen_otherwise_are_told_apart_from_those_that_move(
    schedule: str, name: str
) -> None:
    """Another rate in the program is told; where a schedule has come to is none of its affair."""
    saved, built = (_optimizer(schedule, rate) for rate in (0.5, 0.25))
    before = options_of(built)
    for group in saved.param_groups if schedule in ("steps", "cycle") else []:
        group.update(lr=0.125)
    assert changed(options_of(_optimizer(schedule, 0.5)), options_of(saved)) == []
    built.load_state_dict(saved.state_dict())
    told = changed(before, options_of(built))
    assert f"{name} of group 1 0.5 as saved, 0.25 as built" in told
    assert all("_lr" in words or words.startswith("lr") for words in told)


def test_an_option_that_cannot_be_compared_is_passed_over() -> None:
    """What others keep in their groups must not end a start."""
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer.param_groups[0].update(mask=[torch.ones(2)], rows=torch.ones(2), span=(1, 2))
    before = options_of(optimizer)
    optimizer.param_groups[0].update(mask=[torch.zeros(2)], rows=torch.zeros(2), span=(1, 3))
    told = changed(before, options_of(optimizer))
    assert told == ["span (1, 3) as saved, (1, 2) as built"]


def test_who_changes_an_option_is_told_what_was_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The optimizer goes on as it was saved: a new rate in the program does nothing by itself."""
    caplog.set_level("INFO", "ray_imuckpt")
    model = nn.Linear(1, 1)
    checkpointer = Checkpointer(tmp_path, blocking=True)
    sgd = torch.optim.SGD(model.parameters(), lr=0.5)
    checkpointer.checkpoint(1, model=model, optimizer=sgd)
    other = torch.optim.SGD(model.parameters(), lr=0.25, weight_decay=0.125)
    checkpointer.start(model, other)
    assert "differs: lr 0.5 as saved, 0.25 as built, weight_decay 0 as saved, 0.125" in caplog.text
    assert other.param_groups[0]["lr"] == 0.5
