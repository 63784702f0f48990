"""A restore that fails leaves objects as they were, or names what it could not undo."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import adamw, same_bytes, small_model
from ray_imuckpt import (
    Checkpointer,
    ImuckptError,
    StateMismatchError,
)
from ray_imuckpt.state.random_state import take_random
from ray_imuckpt.state.restorable import Filled
from ray_imuckpt.state.restorable_random import RestorableRandom, SavedRandom
from support.restores import Everything, Refuses


def test_an_object_that_refuses_leaves_all_objects_as_they_were(tmp_path: Path) -> None:
    """By keyword or of a rank: those before it were restored, and are put back."""
    saved = Everything(0, torch.amp.GradScaler("cpu", enabled=False), zz=Refuses())
    saved.save(tmp_path)
    for scaler, error in (
        (torch.amp.GradScaler("cpu"), "switched on here"),
        (torch.amp.GradScaler("cpu", enabled=False), "not this one"),
    ):
        here = Everything(1, scaler, zz=Refuses())
        groups = here.critic_optimizer.param_groups
        before = here.state()
        with pytest.raises(StateMismatchError, match=error):
            here.start(tmp_path)
        assert same_bytes(here.state(), before)
        assert here.critic_optimizer.param_groups is groups


def test_what_fails_behind_all_checks_says_that_the_model_may_hold_a_part(tmp_path: Path) -> None:
    """An optimizer that refuses is found too late for the model, and not for the objects."""

    class Refusing(torch.optim.SGD):
        def load_state_dict(self, _: Any) -> None:
            raise KeyError("half way")

    def build(seed: int) -> Any:
        model = small_model(seed)
        scheduler = torch.optim.lr_scheduler.StepLR(adamw(model), 1 + seed)
        return model, Refusing(model.parameters(), lr=0.1), scheduler

    model, optimizer, scheduler = build(0)
    Checkpointer(tmp_path, blocking=True).checkpoint(
        1, model=model, optimizer=optimizer, scheduler=scheduler
    )
    model, optimizer, scheduler = build(1)
    before = scheduler.state_dict()
    with pytest.raises(ImuckptError, match="half way(?s:.*)rank=0(?s:.*)may hold a part"):
        Checkpointer(tmp_path).start(model, optimizer, scheduler=scheduler)
    assert scheduler.state_dict() == before


def test_a_model_that_does_not_fit_stays_on_its_device(tmp_path: Path) -> None:
    """It is moved once everything is checked, and from scratch."""
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=nn.Linear(2, 2))
    model = nn.Linear(3, 3)
    with pytest.raises(StateMismatchError):
        Checkpointer(tmp_path).start(model, device="meta")
    assert model.weight.is_cpu
    assert Checkpointer(tmp_path / "none").start(model, device="meta").model.weight.is_meta


@pytest.mark.parametrize("kind", ["inference_mode", "expanded"])
def test_memory_that_nothing_can_be_written_to_is_refused_before_anything_is_changed(
    tmp_path: Path, kind: str
) -> None:
    """The error names the tensor, and the cure."""

    class Model(nn.Module):
        def __init__(self, second: torch.Tensor) -> None:
            super().__init__()
            self.first = nn.Linear(2, 2)
            self.register_buffer("second", second)

    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=Model(torch.ones(3, 2)))
    with torch.inference_mode(mode=kind == "inference_mode"):
        second = torch.zeros(3, 2)
    model = Model(second if kind == "inference_mode" else torch.zeros(1, 2).expand(3, 2))
    before = model.first.weight.detach().clone()
    with pytest.raises(StateMismatchError, match=rf"second .*{kind}(?s:.*)clone"):
        Checkpointer(tmp_path).start(model)
    assert same_bytes(model.first.weight, before)
    assert not model.get_buffer("second").any()


def test_what_cannot_be_undone_is_named(tmp_path: Path) -> None:
    """Models, and what is spread over ranks, are not kept: the error says which may hold a part."""

    class Half:
        at = 0

        def state_dict(self) -> dict[str, int]:
            return {"at": self.at}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.at = -1
            raise KeyError("half way")

    class Refusing(nn.Linear):
        def get_extra_state(self) -> int:
            return 1

        def set_extra_state(self, _: int) -> None:
            raise KeyError("half way")

    makers: tuple[Callable[[], Any], ...] = (Half, lambda: Refusing(2, 2))
    for number, make in enumerate(makers, 1):
        saved = Everything(0, Refuses(), thing=make())
        saved.other.pop("scaler")
        saved.save(tmp_path, number)
        here = Everything(1, Refuses(), thing=make())
        here.other.pop("scaler")
        before = here.state()
        with pytest.raises(ImuckptError, match="half way(?s:.*)thing may hold a part of epoch"):
            here.start(tmp_path)
        here.other.pop("thing")
        after = here.state()
        assert same_bytes(after[:2], before[:2])
        assert all(any(same_bytes(state, kept) for kept in before) for state in after)


def test_what_was_applied_is_undone_the_last_first(tmp_path: Path) -> None:
    """Objects may hold parts of each other: only backwards each gets what it was."""
    loads: list[tuple[str, str]] = []

    class Recorded:
        def __init__(self, name: str, value: str) -> None:
            self.name, self.value = name, value

        def state_dict(self) -> dict[str, str]:
            return {"value": self.value}

        def load_state_dict(self, state: dict[str, str]) -> None:
            self.value = state["value"]
            loads.append((self.name, self.value))

    def build(value: str) -> dict[str, Any]:
        return {"a": Recorded("a", value), "b": Recorded("b", value), "c": Refuses()}

    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=small_model(), **build("saved"))
    with pytest.raises(StateMismatchError, match="not this one"):
        Checkpointer(tmp_path).start(small_model(), **build("live"))
    assert loads == [("a", "saved"), ("b", "saved"), ("b", "live"), ("a", "live")]


def test_random_generators_are_undone_where_one_refuses() -> None:
    """Python's has taken its state before torch's refuses."""
    saved = {**take_random(), "torch": torch.zeros(3, dtype=torch.uint8)}
    torch.rand(1), random.random()
    before = take_random()
    restorable = RestorableRandom(SavedRandom(saved, saved, 0), needs_cuda=False)
    with pytest.raises((RuntimeError, TypeError)):
        restorable.apply(Filled())
    assert random.getstate() != before["python"]
    assert restorable.undo()
    assert random.getstate() == before["python"]
    assert same_bytes(torch.get_rng_state(), before["torch"])
