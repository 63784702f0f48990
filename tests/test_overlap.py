"""``snapshot="overlap"``: the copy runs beside training, and what is saved is what was there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import adamw, same_bytes, small_model
from ray_imuckpt import Checkpointer, SaveFailedError
from ray_imuckpt.staging import copies
from support.waiting import PATIENCE


class Gate:
    """Holds the background part of a copy until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()
        self.late: list[int] = []


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    real = copies.copy_on_host

    def copy(pairs: copies.Pairs) -> None:
        if threading.current_thread().name == "imuckpt-save":
            gate.late.append(len(pairs))
            gate.reached.set()
            assert gate.open.wait(PATIENCE)
        real(pairs)

    monkeypatch.setattr(copies, "copy_on_host", copy)
    yield gate
    gate.open.set()


def backward(model: nn.Module) -> None:
    model(torch.randn(8, 4)).square().mean().backward()


def taken(*objects: Any) -> list[Any]:
    """Copies of states."""

    def clone(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().clone()
        if isinstance(value, dict):
            return {key: clone(item) for key, item in value.items()}
        if isinstance(value, list):
            return [clone(item) for item in value]
        return value

    return [clone(dict(thing.state_dict())) for thing in objects]


def restored(directory: Path, *objects: Any, **other: Any) -> list[Any]:
    Checkpointer(directory).start(*objects, **other)
    return taken(*objects, *other.values())


def makers() -> dict[str, Callable[[nn.Module], torch.optim.Optimizer]]:
    def lbfgs(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.LBFGS([p for p in model.parameters() if p.requires_grad], max_iter=2)

    return {
        "AdamW": adamw,
        "fused AdamW": lambda m: torch.optim.AdamW(
            [p for p in m.parameters() if p.requires_grad], fused=True
        ),
        "SGD": lambda m: torch.optim.SGD(
            [p for p in m.parameters() if p.requires_grad], lr=0.1, momentum=0.9
        ),
        "LBFGS": lbfgs,
    }


@pytest.mark.parametrize("kind", makers())
def test_a_step_waits_for_the_copy_and_what_is_saved_is_from_before_it(
    tmp_path: Path, gate: Gate, kind: str
) -> None:
    """The fence holds for every kind of optimizer, fused ones too."""
    model = small_model()
    optimizer = makers()[kind](model)

    def step() -> None:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(torch.ones(8, 4)).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type] # what LBFGS wants is a tensor

    step()
    checkpointer = Checkpointer(tmp_path, snapshot="overlap")
    checkpointer.start(model, optimizer)
    before = taken(model, optimizer)
    checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    assert gate.reached.wait(PATIENCE)
    assert gate.late[0] > 0
    stepping = threading.Thread(target=step)
    stepping.start()
    stepping.join(0.3)
    assert stepping.is_alive(), "the step did not wait"
    assert same_bytes(taken(optimizer), before[1:])
    gate.open.set()
    stepping.join(PATIENCE)
    assert not same_bytes(taken(model), before[:1])
    checkpointer.wait()
    fresh = small_model(seed=1)
    assert same_bytes(restored(tmp_path, fresh, makers()[kind](fresh)), before)


def test_forward_and_backward_do_not_wait_and_buffers_are_copied_at_once(
    tmp_path: Path, gate: Gate
) -> None:
    """Only what a step alone changes may be copied later."""
    model = small_model()
    optimizer = adamw(model)
    alone = nn.Linear(2, 2)  # no optimizer that is passed owns its parameters
    tensor = torch.zeros(3)
    checkpointer = Checkpointer(tmp_path, snapshot="overlap")
    before = taken(model, alone)
    checkpointer.checkpoint(1, model=model, optimizer=optimizer, alone=alone, tensor=tensor)
    assert gate.reached.wait(PATIENCE)
    backward(model)  # changes the running statistics
    with torch.no_grad():
        alone.weight.data.add_(1)
        model.get_parameter("3.bias").data.add_(1)  # frozen
        tensor.add_(1)
    gate.open.set()
    checkpointer.wait()
    fresh, fresh_alone = small_model(seed=1), nn.Linear(2, 2)
    started = Checkpointer(tmp_path).start(fresh, adamw(fresh), alone=fresh_alone)
    assert same_bytes(taken(fresh, fresh_alone), before)
    assert started.other["tensor"].equal(torch.zeros(3))


def test_every_optimizer_that_is_passed_is_fenced(tmp_path: Path, gate: Gate) -> None:
    """Also those by keyword and by rank."""
    model, critic = small_model(), nn.Linear(4, 1)
    first, second = adamw(model), torch.optim.SGD(critic.parameters(), lr=0.1)
    critic(torch.ones(1, 4)).sum().backward()
    checkpointer = Checkpointer(tmp_path, snapshot="overlap")
    before = taken(critic)
    checkpointer.checkpoint(1, model=model, optimizer=first, critic=critic, second=second)
    assert gate.reached.wait(PATIENCE)
    stepping = threading.Thread(target=second.step)
    stepping.start()
    stepping.join(0.2)
    assert stepping.is_alive()
    gate.open.set()
    stepping.join(PATIENCE)
    checkpointer.wait()
    fresh, fresh_critic = small_model(), nn.Linear(4, 1)
    Checkpointer(tmp_path).start(fresh, adamw(fresh), critic=fresh_critic)
    assert same_bytes(taken(fresh_critic), before)


def test_a_change_that_nothing_held_back_is_an_error_that_names_the_tensor(
    tmp_path: Path, gate: Gate
) -> None:
    """A mixture of two states is not committed."""
    model = small_model()
    optimizer = adamw(model)
    checkpointer = Checkpointer(tmp_path, snapshot="overlap")
    checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    assert gate.reached.wait(PATIENCE)
    with torch.no_grad():
        model.get_parameter("0.weight").add_(1)
    gate.open.set()
    with pytest.raises(SaveFailedError, match=r"model/0\.weight was changed") as caught:
        checkpointer.wait()
    assert "eager" in str(caught.value)
    assert checkpointer.list_existing_checkpoint_indices() == []
    checkpointer.checkpoint(2, model=model, optimizer=optimizer)
    checkpointer.wait()
    assert checkpointer.list_existing_checkpoint_indices() == [2]


def test_an_error_while_copying_lets_training_go_on_and_surfaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fence that never opened would stop training for ever."""
    model = small_model()
    optimizer = adamw(model)
    real = copies.copy_on_host

    def fail(pairs: copies.Pairs) -> None:
        if threading.current_thread().name == "imuckpt-save":
            raise MemoryError("no more")
        real(pairs)

    monkeypatch.setattr(copies, "copy_on_host", fail)
    checkpointer = Checkpointer(tmp_path, snapshot="overlap")
    checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    backward(model)
    optimizer.step()
    with pytest.raises(SaveFailedError, match=r"could not be copied.*no more"):
        checkpointer.wait()
    assert checkpointer.list_existing_checkpoint_indices() == []


def test_no_thread_to_be_had_is_an_error_and_steps_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, where there is nobody to make the copy."""
    model = small_model()
    optimizer = adamw(model)
    checkpointer = Checkpointer(tmp_path, snapshot="overlap")

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="new thread"):
            checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    backward(model)
    stepping = threading.Thread(target=optimizer.step, daemon=True)
    stepping.start()
    stepping.join(PATIENCE)
    assert not stepping.is_alive()


def test_an_optimizer_without_hooks_is_told_of_and_copied_at_once(
    tmp_path: Path, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be held back is not left for later."""

    class Homemade:
        """What training code calls an optimizer, without torch's hooks."""

        def __init__(self, parameters: Any) -> None:
            self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), "lr": 1.0}]
            self.state: dict[Any, Any] = {}

        def state_dict(self) -> dict[str, Any]:
            count = len(self.param_groups[0]["params"])
            return {"state": {}, "param_groups": [{"params": list(range(count)), "lr": 1.0}]}

        def load_state_dict(self, _: Any) -> None:
            pass

    model = nn.Linear(2, 2)
    before = taken(model)
    checkpointer = Checkpointer(tmp_path, snapshot="overlap")
    with caplog.at_level(logging.WARNING):
        homemade: Any = Homemade(model.parameters())
        checkpointer.checkpoint(1, model=model, optimizer=homemade)
    assert "Homemade knows no hooks" in caplog.text
    model.weight.data.add_(1)
    gate.open.set()
    checkpointer.wait()
    assert same_bytes(taken(Checkpointer(tmp_path).load(nn.Linear(2, 2))), before)
