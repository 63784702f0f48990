"""What does not fit is told at the call where it can be mended, before anything is changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import same_bytes
from ray_imuckpt import Checkpointer, StateMismatchError, UnsupportedStateError

# ------------------------------------------------------------------ lazy modules


def _lazy(
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.Adam, **options: Any
) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2))
    return model, kind(model.parameters(), lr=0.1, **options)


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last + 1):
        optimizer.zero_grad()
        data = torch.arange(150.0).reshape(2, 3, 5, 5).sin() * step
        model(data).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("named", [False, True], ids=["model", "keywords"])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_lazy_model_and_its_optimizer_resume(
    tmp_path: Path, options: dict[str, Any], named: bool, device: str | None
) -> None:
    """Parameters get the shapes that were saved, and the run goes on byte for byte."""

    def given(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        if named:
            return {"model": nn.Linear(1, 1), "an_optimizer": optimizer, "second": model}
        return {"model": model, "optimizer": optimizer}

    run = _lazy(**options)
    checkpointer = Checkpointer(tmp_path, blocking=True)
    assert checkpointer.start(**given(*run), device=device).start_epoch == 1
    _train(*run, 1, 2)
    checkpointer.checkpoint(2, **given(*run))
    _train(*run, 3, 4)
    resumed = _lazy(**options)
    assert Checkpointer(tmp_path).start(**given(*resumed), device=device).start_epoch == 3
    _train(*resumed, 3, 4)
    assert same_bytes(dict(resumed[0].state_dict()), dict(run[0].state_dict()))
    assert same_bytes(resumed[1].state_dict()["state"], run[1].state_dict()["state"])


def test_a_lazy_model_stays_lazy_where_something_else_does_not_fit(tmp_path: Path) -> None:
    """Another optimizer is found before the parameters get their shapes."""
    model, optimizer = _lazy()
    _train(model, optimizer, 1, 1)
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=model, optimizer=optimizer)
    model, optimizer = _lazy(torch.optim.SGD)
    with pytest.raises(StateMismatchError, match="Adam"):
        Checkpointer(tmp_path).start(model, optimizer)
    assert all(map(nn.parameter.is_lazy, model.parameters()))


@pytest.mark.parametrize(
    ("then", "now", "text"),
    [
        (nn.LazyLinear(2), nn.LazyLinear(3), r"weight: saved \[2, 5\].*\[3, -1\]"),
        (nn.LazyConv1d(2, 3), nn.LazyConv1d(4, 3), "weight.*bias"),
        (nn.LazyConv1d(2, 3), nn.LazyConv1d(2, 1), "weight"),
        (nn.LazyConvTranspose1d(2, 3), nn.LazyConvTranspose1d(4, 3), "weight.*bias"),
    ],
)
def test_a_lazy_module_built_for_another_size_is_refused(
    tmp_path: Path, then: nn.Module, now: nn.Module, text: str
) -> None:
    """Torch would give it the shapes that were saved, whatever it was built for."""
    then(torch.ones(1, 5, 5) if not isinstance(then, nn.LazyLinear) else torch.ones(1, 5))
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.checkpoint(1, model=then)
    with pytest.raises(StateMismatchError, match=f"(?s){text}"):
        checkpointer.start(now)
    assert all(map(nn.parameter.is_lazy, now.parameters()))


# ------------------------------------------------------------------ optimizers of their own kind


class Lookahead:
    """Like optimizers outside of torch: a wrapper with a state_dict of its own."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.fast = optimizer
        self.param_groups = optimizer.param_groups
        self.slow = [p.detach().clone() for g in self.param_groups for p in g["params"]]

    def state_dict(self) -> dict[str, Any]:
        return {"fast": self.fast.state_dict(), "slow": self.slow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.fast.load_state_dict(state["fast"])
        self.slow = state["slow"]


class Subclass(torch.optim.SGD):
    """The same, as a subclass of torch's."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        self.slow = torch.zeros(2)

    def state_dict(self) -> dict[str, Any]:
        return {"inner": super().state_dict(), "slow": self.slow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state["inner"])
        self.slow = state["slow"]


class OfAnotherSize(torch.optim.SGD):
    """Its state speaks of fewer parameters than it has."""

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["param_groups"][0]["params"] = [0]
        return state


OWN: dict[str, Callable[[nn.Module], Any]] = {
    "wrapper": lambda model: Lookahead(torch.optim.SGD(model.parameters(), lr=0.1)),
    "subclass": lambda model: Subclass(model.parameters()),
}


@pytest.mark.parametrize("kind", [*OWN, "of another size"])
def test_an_optimizer_with_a_layout_of_its_own_is_refused_at_start(
    tmp_path: Path, kind: str
) -> None:
    """Not an epoch later; the cure is to pass it by keyword."""
    model = nn.Linear(2, 2)
    optimizer = OWN[kind](model) if kind in OWN else OfAnotherSize(model.parameters(), lr=0.1)
    checkpointer = Checkpointer(tmp_path / "run", blocking=True)
    name = type(optimizer).__name__
    for call in (
        lambda: checkpointer.start(model, optimizer),
        lambda: checkpointer.checkpoint(1, model=model, optimizer=optimizer),
    ):
        with pytest.raises(UnsupportedStateError, match=name) as caught:
            call()
        assert f"by keyword, to start() and to checkpoint(): {name.lower()}=" in str(caught.value)
    assert not list(tmp_path.glob("run/checkpoint=*"))


@pytest.mark.parametrize("kind", OWN)
def test_an_optimizer_with_a_layout_of_its_own_is_restored_by_keyword(
    tmp_path: Path, kind: str
) -> None:
    """And put back as it was where another object refuses."""
    model = nn.Linear(2, 2)
    saved = OWN[kind](model)
    saved.slow = [torch.ones(2) * 5]
    saved.param_groups[0]["lr"] = 0.5
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(model.parameters()), 1)
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.checkpoint(1, model=model, own=saved, scheduler=scheduler, z=Versioned(1))
    resumed = OWN[kind](model)
    before = copy.deepcopy(resumed.state_dict())
    with pytest.raises(StateMismatchError, match="'z'"):
        checkpointer.start(model, own=resumed, z=Versioned(2))
    assert same_bytes(resumed.state_dict(), before)
    checkpointer.start(model, own=resumed)
    assert same_bytes(resumed.state_dict(), saved.state_dict())
    with pytest.raises(StateMismatchError, match="no parameter groups"):
        checkpointer.start(model, own=torch.optim.SGD(model.parameters(), lr=0.1), strict=False)


def test_another_optimizer_inside_of_one_of_its_own_kind_is_refused(tmp_path: Path) -> None:
    """A wrapper that is not known is recorded with what it steps."""
    model = nn.Linear(2, 2)
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.checkpoint(1, model=model, own=OWN["wrapper"](model))
    assert checkpointer.read(1).classes == {"own": "Lookahead(SGD)"}
    with pytest.raises(StateMismatchError, match=r"Lookahead\(Adam\).*Lookahead\(SGD\)"):
        checkpointer.start(model, own=Lookahead(torch.optim.Adam(model.parameters())))


def test_an_optimizer_that_has_no_state_to_give_yet_is_taken(tmp_path: Path) -> None:
    """Whether its state can be stored is told at the first save."""

    class Late(torch.optim.SGD):
        def state_dict(self) -> dict[str, Any]:
            if not self.param_groups[0].get("began"):
                raise RuntimeError("call step() first")
            return super().state_dict()

    model = nn.Linear(2, 2)
    optimizer = Late(model.parameters(), lr=0.1)
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.start(model, optimizer)
    optimizer.param_groups[0]["began"] = True
    assert checkpointer.checkpoint(1, model=model, optimizer=optimizer) is not None


# ------------------------------------------------------------------ objects that have changed


class Versioned:
    """An object whose state has other fields from version to version."""

    def __init__(self, version: int) -> None:
        self.version, self.at, self.more = version, version, 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at, f"of_{self.version}": self.more}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]
        self.more = state[f"of_{self.version}"]


@pytest.mark.parametrize("by_rank", [False, True], ids=["keyword", "per_rank"])
@pytest.mark.parametrize("was_on", [False, True])
def test_a_scaler_that_has_changed_sides_is_refused(
    tmp_path: Path, was_on: bool, by_rank: bool
) -> None:
    """Switched off it has no state: what was saved would be lost in silence, or is not there."""

    def given(**objects: Any) -> dict[str, Any]:
        return {"per_rank": objects} if by_rank else objects

    model = nn.Linear(2, 2)
    checkpointer = Checkpointer(tmp_path, blocking=True)
    scaler = torch.amp.GradScaler("cpu", enabled=was_on)
    checkpointer.checkpoint(1, model=model, **given(scaler=scaler))
    fresh = nn.Linear(2, 2)
    before = copy.deepcopy(fresh.state_dict())
    word = "on" if was_on else "off"
    with pytest.raises(StateMismatchError, match=f"'scaler'.*was switched {word} when"):
        checkpointer.start(fresh, **given(scaler=torch.amp.GradScaler("cpu", enabled=not was_on)))
    assert same_bytes(dict(fresh.state_dict()), dict(before))
    same = torch.amp.GradScaler("cpu", enabled=was_on, init_scale=2.0)
    checkpointer.start(fresh, **given(scaler=same))
    assert same.state_dict() == scaler.state_dict()


@pytest.mark.parametrize("by_rank", [False, True], ids=["keyword", "per_rank"])
def test_an_object_whose_state_has_other_fields_now_is_named(tmp_path: Path, by_rank: bool) -> None:
    """Its own error is told, with what to do, and everything is as it was."""

    def given(**objects: Any) -> dict[str, Any]:
        return {"per_rank": objects} if by_rank else objects

    model = nn.Linear(2, 2)
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.checkpoint(1, model=model, **given(thing=Versioned(1)))
    fresh, thing = nn.Linear(2, 2), Versioned(2)
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(StateMismatchError, match="thing.*Versioned.*of_2(?s:.*)leave it out"):
        checkpointer.start(fresh, **given(thing=thing))
    assert same_bytes(dict(fresh.state_dict()), dict(before))
    assert thing.at == 2


def test_a_scheduler_of_other_groups_or_parts_is_refused(tmp_path: Path) -> None:
    """Torch pairs what there is, and leaves the rest as it was."""

    def build(groups: int, parts: int) -> dict[str, Any]:
        lists = [{"params": [nn.Parameter(torch.ones(1))]} for _ in range(groups)]
        optimizer = torch.optim.SGD(lists, lr=0.1)
        one: list[torch.optim.lr_scheduler.LRScheduler] = [
            torch.optim.lr_scheduler.ConstantLR(optimizer) for _ in range(parts)
        ]
        every = torch.optim.lr_scheduler.SequentialLR(optimizer, one, [*range(1, parts)])
        return {"one": one[0], "every": every}

    checkpointer = Checkpointer(tmp_path, blocking=True)
    model = nn.Linear(1, 1)
    checkpointer.checkpoint(1, model=model, **build(2, 3))
    for groups, parts, text in ((1, 3, "'one'.*1 base_lrs"), (2, 2, "'every'.*2 schedulers")):
        given = build(groups, parts)
        before = given["every"].state_dict()
        with pytest.raises(StateMismatchError, match=text):
            checkpointer.start(model, **given)
        assert given["every"].state_dict() == before
    assert checkpointer.start(model, **build(2, 3)).start_epoch == 2
