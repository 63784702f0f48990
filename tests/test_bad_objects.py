"""Objects that do not fit what was saved are refused, and stay as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import adamw, same_bytes, small_model
from ray_imuckpt import (
    Checkpointer,
    StateMismatchError,
)


def test_a_model_that_does_not_fit_all_keys_listed_and_nothing_changed(trained: Any) -> None:
    """One error lists everything, so that it is mended in one go."""
    directory = trained(1)
    other = nn.Sequential(
        nn.Linear(5, 8), nn.Identity(), nn.Identity(), nn.Linear(8, 2, bias=False)
    )
    other.more = nn.Linear(1, 1)
    before = {n: t.clone() for n, t in other.state_dict().items()}
    with pytest.raises(StateMismatchError) as caught:
        Checkpointer(directory).start(other)
    error = caught.value
    assert error.missing == ["more.bias", "more.weight"]
    assert error.unexpected == [
        "1.bias",
        "1.num_batches_tracked",
        "1.running_mean",
        "1.running_var",
        "1.weight",
        "3.bias",
    ]
    assert error.wrong_shape == {"0.weight": ([8, 4], [8, 5])}
    for key in [*error.missing, *error.unexpected, "0.weight: saved [8, 4], here [8, 5]"]:
        assert key in str(error)
    assert same_bytes(dict(other.state_dict()), before)
    with pytest.raises(StateMismatchError):
        Checkpointer(directory).load(other)


def test_strict_false_loads_what_fits(trained: Any) -> None:
    """The rest of the model stays as it was."""
    first = nn.Linear(4, 8)
    model = nn.Sequential(first)
    model.more = nn.Linear(1, 1)
    Checkpointer(trained(1)).load(model, strict=False)
    assert torch.equal(first.weight, Checkpointer(trained(1)).read(1).model["0.weight"])


@pytest.mark.parametrize("kind", ["class", "groups", "parameters"])
def test_an_optimizer_that_does_not_fit_leaves_everything_unchanged(
    trained: Any, kind: str
) -> None:
    """The model is not restored either."""
    directory = trained(1)
    model = small_model(seed=6)
    usable = [p for p in model.parameters() if p.requires_grad]
    makers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "class": lambda: torch.optim.SGD(usable),
        "groups": lambda: torch.optim.AdamW(usable),
        "parameters": lambda: torch.optim.AdamW([{"params": usable[:1]}, {"params": usable[1:]}]),
    }
    optimizer = makers[kind]()
    before = {n: t.clone() for n, t in model.state_dict().items()}, optimizer.state_dict()
    with pytest.raises(StateMismatchError, match={"class": "AdamW.*SGD"}.get(kind, "group")):
        Checkpointer(directory).start(model, optimizer)
    assert same_bytes(dict(model.state_dict()), before[0])
    assert same_bytes(optimizer.state_dict(), before[1])


def _optimizer(make: Any, *sizes: int) -> torch.optim.Optimizer:
    """One of as many groups as there are sizes, having stepped once."""
    groups = [{"params": [nn.Parameter(torch.ones(3)) for _ in range(size)]} for size in sizes]
    optimizer = make(groups, lr=0.1)
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones(3)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("how", ["other", "per_rank"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: _optimizer(torch.optim.SGD, 1, 2), "'thing'.* is a SGD here.* as a Adam"),
        (lambda: _optimizer(torch.optim.Adam, 3), "'thing'.*2 parameter group.*1 of"),
        (lambda: _optimizer(torch.optim.Adam, 2, 1), r"'thing'.*\[1, 2\].*\[2, 1\]"),
    ],
)
def test_an_optimizer_by_keyword_that_does_not_fit_changes_nothing(
    tmp_path: Path, how: str, wrong: Any, message: str
) -> None:
    """It is held against what was saved as the first one is."""

    def given(thing: Any, step_size: int) -> dict[str, Any]:
        objects = {
            "a_scheduler": torch.optim.lr_scheduler.StepLR(thing, step_size),
            "thing": thing,
        }
        return {"per_rank": objects} if how == "per_rank" else objects

    right = _optimizer(torch.optim.Adam, 1, 2)
    held = [parameter for group in right.param_groups for parameter in group["params"]]
    Checkpointer(tmp_path, blocking=True).checkpoint(
        1, model=small_model(), held=nn.ParameterList(held), **given(right, 2)
    )
    model, thing = small_model(seed=1), wrong()
    objects = given(thing, 3)
    scheduler = objects.get("a_scheduler") or objects["per_rank"]["a_scheduler"]
    before = copy.deepcopy([dict(model.state_dict()), thing.state_dict(), scheduler.state_dict()])
    with pytest.raises(StateMismatchError, match=message):
        Checkpointer(tmp_path).start(model, **objects)
    after = [dict(model.state_dict()), thing.state_dict(), scheduler.state_dict()]
    assert same_bytes(after, before)


def test_a_scheduler_of_another_class_is_refused_and_a_renamed_one_let_pass(tmp_path: Path) -> None:
    """``strict=False`` is for those who have renamed a class."""
    schedulers = torch.optim.lr_scheduler

    class Renamed(schedulers.StepLR):
        """The same under another name."""

    def make(kind: Any, *arguments: int) -> Any:
        return kind(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), *arguments)

    Checkpointer(tmp_path, blocking=True).checkpoint(
        1, model=small_model(), scheduler=make(schedulers.StepLR, 5)
    )
    for kind in (schedulers.CosineAnnealingLR, Renamed):
        scheduler = make(kind, 9)
        before = scheduler.state_dict()
        with pytest.raises(StateMismatchError, match="'scheduler' is a .*StepLR") as caught:
            Checkpointer(tmp_path).start(small_model(), scheduler=scheduler)
        assert kind.__name__ in str(caught.value)
        assert "strict=False" in str(caught.value)
        assert scheduler.state_dict() == before
    Checkpointer(tmp_path).start(small_model(), scheduler=scheduler, strict=False)
    assert scheduler.step_size == 5


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Adagrad, torch.optim.Rprop])
def test_a_parameter_outside_of_the_model_that_grew_is_told_of(tmp_path: Path, make: Any) -> None:
    """What was saved of it would not fit, whatever the optimizer."""

    def build(seed: int, size: int) -> Any:
        model, own = small_model(seed), nn.Parameter(torch.ones(size))
        return model, make([*(p for p in model.parameters() if p.requires_grad), own]), own

    model, optimizer, own = build(0, 4)
    own.grad = torch.ones(4)
    optimizer.step()
    Checkpointer(tmp_path, blocking=True).checkpoint(
        1, model=model, optimizer=optimizer, again=optimizer, own=own
    )
    for keyword in ("optimizer", "again"):
        model, optimizer, own = build(1, 7)
        before = copy.deepcopy([dict(model.state_dict()), optimizer.state_dict()])
        with pytest.raises(StateMismatchError, match=r"param_groups\[0\]\[5\].*\[4\], here \[7\]"):
            Checkpointer(tmp_path).start(model, **{keyword: optimizer})
        assert same_bytes([dict(model.state_dict()), optimizer.state_dict()], before)


def test_a_model_without_memory_is_not_loaded_into(trained: Any) -> None:
    """A model on the meta device would hold nothing afterwards."""
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 2))
    with pytest.raises(StateMismatchError, match="to_empty"):
        Checkpointer(trained(1)).load(empty)


def test_a_model_by_keyword_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    """It is held against what was saved as the first one is."""
    Checkpointer(tmp_path).checkpoint(1, model=small_model(), critic=nn.Linear(2, 2))
    model = small_model(seed=9)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(StateMismatchError, match="weight"):
        Checkpointer(tmp_path).start(model, critic=nn.Linear(3, 3))
    assert same_bytes(dict(model.state_dict()), before)


def test_an_object_that_refuses_its_state_leaves_everything_unchanged(tmp_path: Path) -> None:
    """What was restored before it is put back."""

    class Refusing:
        def state_dict(self) -> dict[str, int]:
            return {"at": 1}

        def load_state_dict(self, state: dict[str, int]) -> None:
            raise KeyError("not mine")

    def build(seed: int) -> Any:
        model = small_model(seed)
        optimizer = adamw(model)
        return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1 + seed)

    model, optimizer, scheduler = build(0)
    Checkpointer(tmp_path).checkpoint(
        1, model=model, optimizer=optimizer, per_rank={"sampler": Refusing()},
        detector=Refusing(), a_scheduler=scheduler,
    )  # fmt: skip
    for given in ({"per_rank": {"sampler": Refusing()}}, {"detector": Refusing()}):
        model, optimizer, scheduler = build(9)
        states = [dict(model.state_dict()), optimizer.state_dict(), scheduler.state_dict()]
        before = copy.deepcopy(states)
        with pytest.raises(StateMismatchError, match="did not take the state.*not mine"):
            Checkpointer(tmp_path).start(model, optimizer, a_scheduler=scheduler, **given)
        states = [dict(model.state_dict()), optimizer.state_dict(), scheduler.state_dict()]
        assert same_bytes(states, before)


def test_objects_that_were_not_saved(trained: Any) -> None:
    """They are named, unless the caller lets them be as built."""
    directory = trained(1)
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(StateMismatchError, match="scaler"):
        Checkpointer(directory).start(small_model(), scaler=scaler)
    started = Checkpointer(directory).start(small_model(), scaler=scaler, strict=False)
    assert started.other["scaler"] is scaler
