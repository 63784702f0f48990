"""Modules decide for themselves what saved names mean; what is left out is told and returned."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.ao.quantization import FakeQuantize, observer
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations

from conftest import compiled, same_bytes, small_model
from ray_imuckpt import Checkpointer, StateMismatchError
from ray_imuckpt.state.rehearsal import custom_loading


def save(directory: Path, model: nn.Module, **other: Any) -> None:
    Checkpointer(directory, blocking=True).checkpoint(1, model=model, **other)


def load(directory: Path, model: nn.Module, *, strict: bool) -> None:
    Checkpointer(directory).load(model, 1, strict=strict)


def start(directory: Path, model: nn.Module, *, strict: bool) -> None:
    Checkpointer(directory).start(model, strict=strict)


def by_keyword(directory: Path, model: nn.Module, *, strict: bool) -> None:
    Checkpointer(directory).start(nn.Linear(1, 1), ema=model, strict=strict)


ways = pytest.mark.parametrize("way", [load, start, by_keyword])
strictness = pytest.mark.parametrize("strict", [True, False])


class Renamed(nn.Module):
    """Takes states in which its layer had another name."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)
        self.register_load_state_dict_pre_hook(self._rename)  # type: ignore[no-untyped-call]

    @staticmethod
    def _rename(_module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for key in [key for key in state if key.startswith(f"{prefix}trunk.")]:
            state[key.replace("trunk", "body")] = state.pop(key)


class Override(nn.Module):
    """The same, the old way."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)

    def load_state_dict(self, state_dict: Any, *rest: Any, **more: Any) -> Any:
        new = {key.replace("trunk", "body"): value for key, value in state_dict.items()}
        return super().load_state_dict(new, *rest, **more)


class Grows(nn.Module):
    """Makes as many entries of its list as were saved."""

    def __init__(self, count: int = 0) -> None:
        super().__init__()
        self.parts = nn.ParameterList([torch.rand(2) for _ in range(count)])

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        count = sum(key.startswith(f"{prefix}parts.") for key in state)
        self.parts.extend(torch.zeros(2) for _ in range(count - len(self.parts)))
        super()._load_from_state_dict(state, prefix, *rest)


def old_names() -> nn.Module:
    return nn.ModuleDict({"trunk": nn.Linear(3, 2)})


def weight_norm() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)))


def old_weight_norm() -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)))


def observed(kind: Callable[[], nn.Module], *, used: bool) -> nn.Module:
    module = kind()
    if used:
        module(torch.randn(5, 3))
    return module


kinds = [
    observer.MinMaxObserver,
    lambda: observer.PerChannelMinMaxObserver(ch_axis=1),
    observer.HistogramObserver,
    lambda: FakeQuantize(
        observer.MovingAveragePerChannelMinMaxObserver,
        ch_axis=1,
        qscheme=torch.per_channel_affine,
    ),
]


@ways
@strictness
def test_names_that_a_module_migrates_are_loaded_as_torch_loads_them(
    tmp_path: Path, way: Any, *, strict: bool
) -> None:
    """An older weight_norm goes into the newer one, whatever `strict` is."""
    old = old_weight_norm()
    save(tmp_path, nn.Linear(1, 1) if way is by_keyword else old, ema=old)
    x = torch.randn(2, 3)
    for wrap in (lambda m: m, lambda m: torch.compile(m, backend="eager")):
        new = weight_norm()
        way(tmp_path, wrap(new), strict=strict)
        assert torch.equal(new(x), old(x))


@ways
@pytest.mark.parametrize("kind", [Renamed, Override])
def test_hooks_and_overrides_of_the_user_decide(tmp_path: Path, way: Any, kind: Any) -> None:
    """What a module takes under other names is neither missing nor unexpected."""
    old = old_names()
    save(tmp_path, nn.Linear(1, 1) if way is by_keyword else old, ema=old)
    new = kind()
    way(tmp_path, new, strict=True)
    assert torch.equal(new.get_parameter("body.weight"), old.get_parameter("trunk.weight"))


def test_a_compiled_part_that_migrates_names_gets_them_under_its_own(tmp_path: Path) -> None:
    """The segment that a wrapper puts into names is put in before hooks see them."""
    old = nn.Sequential(old_names())
    save(tmp_path, old)
    part = Renamed()
    load(tmp_path, nn.Sequential(compiled(part)), strict=True)
    assert torch.equal(part.body.weight, old.get_parameter("0.trunk.weight"))


def test_a_module_that_swaps_two_tensors_gets_both(tmp_path: Path) -> None:
    """It is not given tensors whose memory it is about to write."""

    class Swaps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.rand(3)), nn.Parameter(torch.rand(3))

        def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
            a, b = f"{prefix}a", f"{prefix}b"
            state[a], state[b] = state[b], state[a]
            super()._load_from_state_dict(state, prefix, *rest)

    old = nn.Sequential(Swaps())
    save(tmp_path, old)
    for way in (load, start):
        new = nn.Sequential(Swaps())
        way(tmp_path, new, strict=True)
        for there, here in (("0.a", "0.b"), ("0.b", "0.a")):
            assert torch.equal(new.get_parameter(there), old.get_parameter(here))


@ways
@strictness
@pytest.mark.parametrize("kind", kinds)
def test_buffers_that_a_module_resizes_are_loaded(
    tmp_path: Path, way: Any, kind: Any, *, strict: bool
) -> None:
    """A fresh observer takes the ranges of one that has seen data."""
    used = observed(kind, used=True)
    save(tmp_path, nn.Linear(1, 1) if way is by_keyword else used, ema=used)
    fresh = observed(kind, used=False)
    way(tmp_path, fresh, strict=strict)
    assert same_bytes(dict(fresh.state_dict()), dict(used.state_dict()))
    assert all(not tensor.is_meta for tensor in fresh.state_dict().values())


def test_a_list_that_a_module_extends_while_loading_is_loaded(tmp_path: Path) -> None:
    """What is to come into being is not unexpected."""
    save(tmp_path, nn.Sequential(Grows(3)))
    new = nn.Sequential(Grows(1))
    load(tmp_path, new, strict=True)
    stored = Checkpointer(tmp_path).read(1).model
    assert same_bytes(dict(new.state_dict()), dict(stored))


def test_a_hook_that_forgives_missing_names_is_heard(tmp_path: Path) -> None:
    """Hooks behind the load decide as those before it do."""
    save(tmp_path, nn.Sequential(nn.Linear(2, 2)))
    new = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    new.register_load_state_dict_post_hook(lambda _, told: told.missing_keys.clear())
    load(tmp_path, new, strict=True)
    assert torch.equal(
        new.get_parameter("0.weight"), Checkpointer(tmp_path).read(1).model["0.weight"]
    )


@pytest.mark.parametrize("why", ["it refuses", "it cannot be copied"])
def test_where_a_module_cannot_be_asked_names_decide_and_nothing_is_changed(
    tmp_path: Path, why: str
) -> None:
    """A module whose hook raises, or that holds a lock, is held to its names."""
    save(tmp_path, nn.ModuleDict({"root": nn.Linear(3, 2), "other": nn.Linear(1, 1)}))
    new = Renamed()
    if why == "it refuses":

        def refuse(*_: Any) -> None:
            raise KeyError("no")

        new.register_load_state_dict_pre_hook(refuse)  # type: ignore[no-untyped-call]
    else:
        vars(new)["lock"] = threading.Lock()
    before = {name: value.clone() for name, value in new.state_dict().items()}
    with pytest.raises(StateMismatchError) as caught:
        load(tmp_path, new, strict=True)
    assert caught.value.missing == ["body.bias", "body.weight"]
    assert same_bytes(dict(new.state_dict()), before)


def test_what_is_left_out_is_logged_and_returned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Both sides, of the model, of a model by keyword, and of objects that were not saved."""
    saved = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1, bias=False)})
    save(tmp_path, saved, ema=saved)

    def build() -> nn.Module:
        return nn.ModuleDict({"a": nn.Linear(1, 1), "c": nn.Linear(1, 1, bias=False)})

    checkpointer = Checkpointer(tmp_path)
    checkpointer.load(build(), strict=False)
    assert tuple(checkpointer.left_out) == (("c.weight",), ("b.weight",))
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)], lr=1.0), 1)
    checkpointer.start(build(), ema=build(), scheduler=scheduler, strict=False)
    assert set(checkpointer.left_out.missing) == {"c.weight", "ema.c.weight", "scheduler"}
    assert set(checkpointer.left_out.unexpected) == {"b.weight", "ema.b.weight"}
    told = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    for name in ("c.weight", "b.weight", "ema.c.weight", "ema.b.weight", "scheduler"):
        assert any(name in message and str(tmp_path) in message for message in told)
    checkpointer.load(saved)
    left_out = checkpointer.left_out
    assert not left_out.missing + left_out.unexpected


@ways
@strictness
def test_that_nothing_fits_is_an_error(tmp_path: Path, way: Any, *, strict: bool) -> None:
    """strict=False is for a part: a model of which nothing was saved would train from scratch."""
    saved = nn.ModuleDict({"a": nn.Linear(1, 1)})
    save(tmp_path, saved if way is not by_keyword else nn.Linear(1, 1), ema=saved)
    model = nn.ModuleDict({"b": nn.Linear(1, 1)})
    with pytest.raises(StateMismatchError, match="Nothing in the checkpoint fits") as caught:
        way(tmp_path, model, strict=strict)
    assert caught.value.missing == ["b.bias", "b.weight"]
    assert caught.value.unexpected == ["a.bias", "a.weight"]


def test_only_modules_with_a_loading_of_their_own_lose_the_straight_way() -> None:
    """Layers and wrappers of torch are read in place; fails if torch renames its hooks."""
    plain = nn.Sequential(
        nn.BatchNorm1d(2), nn.LSTM(2, 2), nn.LazyLinear(2), checkpoint_wrapper(small_model())
    )
    assert custom_loading(plain) == ()
    assert custom_loading(nn.Sequential(weight_norm(), nn.Linear(1, 1))) == ("0.0.",)
    assert custom_loading(nn.Sequential(Renamed())) == ("0.",)
    assert custom_loading(Override()) == ("",)
    assert custom_loading(nn.ModuleList([observer.MinMaxObserver()])) == ("0.",)
