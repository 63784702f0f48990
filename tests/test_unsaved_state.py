"""What of a run's state is not saved or not restored is named where it can be mended."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from conftest import small_model
from ray_imuckpt import Checkpointer, UnsupportedStateError
from support.gangs.common import Position


class Warnings:
    """The warnings since the last look."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog

    def __call__(self) -> list[str]:
        found = [r.message for r in self._caplog.records if r.levelno == logging.WARNING]
        self._caplog.clear()
        return found


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Warnings:
    caplog.set_level(logging.INFO, "ray_imuckpt")
    return Warnings(caplog)


def sgd(*parameters: torch.Tensor) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def checkpointer(directory: Path) -> Checkpointer:
    return Checkpointer(directory, blocking=True)


class Holder:
    """An object, not a module, that saves a parameter."""

    def __init__(self, parameter: torch.Tensor) -> None:
        self.parameter = parameter

    def state_dict(self) -> dict[str, Any]:
        return {"deep": [{"parameter": self.parameter}]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.parameter.data.copy_(state["deep"][0]["parameter"])


class Metric(nn.Module):
    """As torchmetrics: what it has counted is neither a buffer nor a parameter."""

    def __init__(self, *, entries: bool = False) -> None:
        super().__init__()
        self.total = [torch.ones(2)] if entries else torch.zeros(())
        self.threshold = 0.5


class Rotary(nn.Module):
    """All it has is a buffer that is not persistent."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(2), persistent=False)


class Average:
    """An object that forgot to give its state."""

    def __init__(self) -> None:
        self.total = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@pytest.mark.parametrize("where", ["optimizer", "critic_optimizer", "per_rank"])
def test_parameters_that_nothing_saves_are_refused_and_named_at_start(
    tmp_path: Path, warned: Warnings, where: str
) -> None:
    """A learnable weight of the loss would begin anew; it is named before the first epoch."""
    model, weight = small_model(), nn.Parameter(torch.zeros(3))
    optimizer = sgd(*model.parameters(), weight)
    given: dict[str, Any] = {where: optimizer}
    if where == "per_rank":
        given = {"per_rank": {"o": optimizer}}
    shown = "per_rank['o']" if where == "per_rank" else where
    place = f"{shown}.param_groups[0]['params'][{len(list(model.parameters()))}] of shape (3,)"
    run = checkpointer(tmp_path)
    run.start(model, **given)
    (warning,) = warned()
    assert place in warning
    assert "by keyword" in warning
    with pytest.raises(UnsupportedStateError) as caught:
        run.checkpoint(1, model=model, **given)
    assert place in str(caught.value)
    assert "nn.ParameterList" in str(caught.value)
    assert run.list_existing_checkpoint_indices() == []


@pytest.mark.parametrize(
    "holder",
    [lambda p: nn.ParameterList([p]), Holder, lambda p: p, lambda p: {"a": [p.detach()]}],
    ids=["module", "object", "value", "values"],
)
def test_parameters_that_something_by_keyword_saves_are_welcome(
    tmp_path: Path, warned: Warnings, holder: Any
) -> None:
    """A module, an object and a plain value hold them as well as the model does."""
    model, weight = small_model(), nn.Parameter(torch.zeros(3))
    optimizer = sgd(*model.parameters(), weight)
    run = checkpointer(tmp_path)
    run.start(model, optimizer, extra=holder(weight))
    run.checkpoint(1, model=model, optimizer=optimizer, extra=holder(weight))
    assert warned() == []


def test_a_group_that_is_added_later_is_looked_at(tmp_path: Path) -> None:
    """The second save looks again where the first one's optimizer has grown."""
    model = small_model()
    optimizer = sgd(*model.parameters())
    run = checkpointer(tmp_path)
    run.checkpoint(1, model=model, optimizer=optimizer)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    with pytest.raises(UnsupportedStateError, match=r"param_groups\[1\]\['params'\]\[0\]"):
        run.checkpoint(2, model=model, optimizer=optimizer)


def test_what_start_was_not_given_is_named(tmp_path: Path, warned: Warnings) -> None:
    """A scheduler that was forgotten would begin anew without a word."""
    model = small_model()
    optimizer = sgd(*model.parameters())
    objects: dict[str, Any] = {
        "scheduler": StepLR(optimizer, 3),
        "per_rank": {"sampler": Position(4)},
    }
    checkpointer(tmp_path).checkpoint(1, model=model, optimizer=optimizer, note=1, **objects)
    assert warned() == []
    run = checkpointer(tmp_path)
    assert run.start(model).other["note"] == 1
    warnings = warned()
    assert len(warnings) == 3
    for name, cure in (
        ("optimizer", "optimizer=..."),
        ("scheduler", "scheduler=..."),
        ("per_rank['sampler']", "per_rank={...}"),
    ):
        assert any(w.startswith(f"{name} is in") and cure in w and "epoch 1" in w for w in warnings)
    run.start(model)
    assert warned() == [], "each name once"
    checkpointer(tmp_path).start(model, optimizer, **objects)
    assert warned() == []


def test_what_only_one_of_start_and_checkpoint_is_given_is_named(
    tmp_path: Path, warned: Warnings
) -> None:
    """A run that begins learns at its first save what a resumed one would lack."""
    model = small_model()
    optimizer = sgd(*model.parameters())
    a, b = StepLR(optimizer, 3), StepLR(optimizer, 3)
    run = checkpointer(tmp_path)
    run.start(model, optimizer, a=a, value=1)
    for epoch in (1, 2):
        run.checkpoint(epoch, model=model, optimizer=optimizer, b=b, number=epoch)
    warnings = warned()
    assert len(warnings) == 2
    assert any(w.startswith("a was given to start()") for w in warnings)
    assert any(w.startswith("b is saved, and start() was not given it") for w in warnings)


def test_what_a_resumed_run_no_longer_saves_is_named(tmp_path: Path, warned: Warnings) -> None:
    """The log, a value and an object that were there would be gone with the next save."""
    model = small_model()
    optimizer = sgd(*model.parameters())
    scheduler = StepLR(optimizer, 3)
    checkpointer(tmp_path).checkpoint(1, model=model, log=[1], value=2, scheduler=scheduler)
    run = checkpointer(tmp_path)
    run.start(model, scheduler=scheduler)
    run.checkpoint(2, model=model)
    warnings = warned()
    assert len(warnings) == 3
    for name in ("The log of", "value was in", "scheduler was given to start()"):
        assert any(w.startswith(name) for w in warnings)


@pytest.mark.parametrize(("then", "now"), [("frozen", "trained"), ("trained", "frozen")])
def test_another_frozen_set_is_named(tmp_path: Path, warned: Warnings, then: str, now: str) -> None:
    """A layer that was unfrozen in the third epoch is frozen again when the script is run anew."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(then == "trained")
    checkpointer(tmp_path).checkpoint(1, model=model)
    model[0].requires_grad_(now == "trained")
    run = checkpointer(tmp_path)
    run.start(model)
    (warning,) = warned()
    assert f"were {then} when epoch 1 was saved, and are {now} now: 0.weight, 0.bias." in warning
    run.load(model)
    assert warned() == [], "not for weights that are loaded to be tested"


def test_another_dtype_is_named(tmp_path: Path, warned: Warnings) -> None:
    """What was saved is rounded, which is another run; not where weights are only loaded."""
    checkpointer(tmp_path).checkpoint(1, model=nn.Linear(2, 2))
    run = checkpointer(tmp_path)
    run.start(nn.Linear(2, 2).half())
    (warning,) = warned()
    assert "were torch.float32 when epoch 1 was saved, and are torch.float16 now: weight" in warning
    run.load(nn.Linear(2, 2).half())
    assert warned() == []


@pytest.mark.parametrize(
    ("make", "holds"),
    [
        (Metric, "total"),
        (lambda: Metric(entries=True), "total"),
        (lambda: nn.ModuleDict({"m": Metric()}), "m.total"),
        (Rotary, "seen"),
        (Average, "total"),
    ],
)
@pytest.mark.parametrize("how", ["keyword", "per_rank"])
def test_an_object_without_a_state_that_holds_some_is_named_once(
    tmp_path: Path, warned: Warnings, make: Any, holds: str, how: str
) -> None:
    """Nothing of it is stored, and nothing would have said so."""
    thing, model = make(), small_model()
    given: dict[str, Any] = {"metric": thing} if how == "keyword" else {"per_rank": {"m": thing}}
    run = checkpointer(tmp_path)
    for epoch in (1, 2):
        run.checkpoint(epoch, model=model, **given)
    (warning,) = warned()
    assert warning.startswith("metric (" if how == "keyword" else "per_rank['m'] (")
    assert f"what it holds ({holds}) is not saved" in warning


def test_objects_that_rightly_have_no_state_are_not_named(tmp_path: Path, warned: Warnings) -> None:
    """A scaler that is switched off, a loss, a generator."""
    model = small_model()
    checkpointer(tmp_path).checkpoint(
        1,
        model=model,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        loss=nn.CrossEntropyLoss(),
        generator=torch.Generator(),
    )
    assert warned() == []


def test_an_epoch_saved_below_the_newest_without_start_is_named(
    tmp_path: Path, warned: Warnings
) -> None:
    """A script that is run again without start() would leave "the last" to the run before."""
    model = small_model()
    first = checkpointer(tmp_path)
    for epoch in (1, 2, 3):
        first.checkpoint(epoch, model=model)
    again = checkpointer(tmp_path)
    for epoch in (1, 2):
        again.checkpoint(epoch, model=model)
    (warning,) = warned()
    assert f"Epoch 1 is saved below epoch 3, the newest in {tmp_path}" in warning
    checkpointer(tmp_path).checkpoint(3, model=model)
    started = checkpointer(tmp_path)
    started.start(model, continue_from=1)
    started.checkpoint(2, model=model)
    assert warned() == []
