"""Promise 7: training does not wait for a save, and a save in the background loses nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import same_bytes, small_model
from ray_imuckpt import Checkpointer, SaveFailedError, UnsupportedStateError
from ray_imuckpt.staging import HostBuffers
from ray_imuckpt.storage.local import LocalStorage
from support.waiting import PATIENCE


class Gate:
    """Holds every data file's write until it is opened, or lets it fail."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()
        self.fail: Exception | None = None
        self.writes: list[str] = []


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A storage that is as slow, or as broken, as the test wants."""
    gate = Gate()
    real = LocalStorage.write

    def write(self: LocalStorage, name: str, *rest: Any) -> None:
        gate.reached.set()
        assert gate.open.wait(PATIENCE)
        if gate.fail is not None:
            raise gate.fail
        gate.writes.append(name)
        real(self, name, *rest)

    monkeypatch.setattr(LocalStorage, "write", write)
    yield gate
    gate.open.set()


def test_checkpoint_returns_before_anything_is_written(tmp_path: Path, gate: Gate) -> None:
    """Training goes on while every byte is still to be written."""
    checkpointer = Checkpointer(tmp_path)
    pending = checkpointer.checkpoint(1, model=small_model())
    assert pending is not None
    assert gate.reached.wait(PATIENCE)
    assert not pending.done()
    assert not (tmp_path / "checkpoint=1" / "manifest.json").exists()
    gate.open.set()
    pending.wait()
    assert pending.done()
    checkpointer.verify(1)
    assert pending.checkpoint.path == str(tmp_path / "checkpoint=1")


def test_what_is_saved_is_what_was_there_when_checkpoint_returned(
    tmp_path: Path, gate: Gate
) -> None:
    """The loop goes on in place: weights, buffers, moments, log, other, numpy arrays."""
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    log: list[Any] = [{"epoch": 1}]
    table: dict[str, Any] = {"a": torch.ones(3), "b": [1]}
    expected = {n: t.clone() for n, t in model.state_dict().items()}
    moment = optimizer.state[model.get_parameter("0.weight")]["momentum_buffer"].clone()
    checkpointer = Checkpointer(tmp_path)
    checkpointer.checkpoint(1, model=model, optimizer=optimizer, log=log, table=table)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    optimizer.state[model.get_parameter("0.weight")]["momentum_buffer"].zero_()
    log[0]["epoch"] = 2
    log.append("more")
    table["a"].zero_()
    table["b"].append(2)
    gate.open.set()
    loaded = checkpointer.read(1)
    assert same_bytes(loaded.model, expected)
    assert loaded.optimizer is not None
    assert same_bytes(loaded.optimizer["state"]["0.weight"]["momentum_buffer"], moment)
    assert loaded.log == [{"epoch": 1}]
    assert same_bytes(loaded.other["table"], {"a": torch.ones(3), "b": [1]})


def test_the_next_save_waits_for_the_one_in_flight_and_says_so(
    tmp_path: Path, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory is bounded: there is one host copy, and never a queue."""
    checkpointer = Checkpointer(tmp_path)
    model = small_model()
    checkpointer.checkpoint(1, model=model)
    began = threading.Event()

    def second() -> None:
        began.set()
        checkpointer.checkpoint(2, model=model)

    thread = threading.Thread(target=second)
    thread.start()
    assert began.wait(PATIENCE)
    time.sleep(1.2)  # longer than what is told of; nothing below depends on how much longer
    assert gate.writes == []
    assert thread.is_alive(), "one save in flight, the next one waits"
    with caplog.at_level(logging.WARNING, "ray_imuckpt"):
        gate.open.set()
        thread.join(PATIENCE)
    checkpointer.wait()
    assert "Waited" in caplog.text
    order = [name.split("/")[0] for name in gate.writes]
    assert order == sorted(order)
    assert checkpointer.list_existing_checkpoint_indices() == [1, 2]


def test_a_process_reads_its_own_writes(tmp_path: Path, gate: Gate) -> None:
    """Also through another Checkpointer, and when the one that writes is gone."""
    Checkpointer(tmp_path).checkpoint(1, model=small_model(), log=["written"])
    threading.Timer(0.2, gate.open.set).start()
    assert Checkpointer(tmp_path).start(small_model(3)).log == ["written"]
    gate.open.clear()
    Checkpointer(tmp_path).checkpoint(2, model=small_model())
    threading.Timer(0.2, gate.open.set).start()
    assert Checkpointer(tmp_path).index_of_last_checkpoint() == 2


def test_epochs_that_are_not_due_do_not_wait(tmp_path: Path, gate: Gate) -> None:
    """Only a save has to wait for the one before it."""
    checkpointer = Checkpointer(tmp_path, save_every=2)
    model = small_model()
    pending = checkpointer.checkpoint(2, model=model)
    assert checkpointer.checkpoint(3, model=model, metrics={"loss": 1.0}) is None
    assert pending is not None
    assert not pending.done()


@pytest.mark.parametrize("where", ["next call", "wait", "pending", "exit", "start"])
def test_an_error_in_the_background_surfaces_once(tmp_path: Path, gate: Gate, where: str) -> None:
    """Whoever asks next is told, and the saves after that go on."""
    checkpointer = Checkpointer(tmp_path)
    model = small_model()
    gate.open.set()
    checkpointer.checkpoint(1, model=model)
    checkpointer.wait()
    gate.fail = OSError(28, "No space left on device")
    pending = checkpointer.checkpoint(2, model=model)
    assert pending is not None
    while not pending.done():
        time.sleep(0.01)
    calls: dict[str, Callable[[], object]] = {
        "next call": lambda: checkpointer.checkpoint(3, model=model),
        "wait": checkpointer.wait,
        "pending": pending.wait,
        "start": lambda: checkpointer.start(model),
        "exit": lambda: checkpointer.__exit__(None, None, None),
    }
    with pytest.raises(SaveFailedError, match="No space left") as caught:
        calls[where]()
    assert caught.value.epoch == 2
    with pytest.raises(SaveFailedError):
        pending.wait()
    gate.fail = None
    checkpointer.wait()
    checkpointer.checkpoint(4, model=model)
    assert checkpointer.list_existing_checkpoint_indices() == [1, 4]
    assert not (tmp_path / "checkpoint=2").exists()


def test_what_cannot_be_stored_is_refused_at_the_call(tmp_path: Path) -> None:
    """What is the caller's mistake is not left to the background."""
    with pytest.raises(UnsupportedStateError):
        Checkpointer(tmp_path / "run").checkpoint(1, model=small_model(), hook=print)
    assert not (tmp_path / "run").exists()


def test_an_exception_in_the_loop_does_not_lose_the_save_in_flight(
    tmp_path: Path, gate: Gate
) -> None:
    """``with`` finishes the save, and the loop's own error is what is seen."""
    threading.Timer(0.2, gate.open.set).start()

    def loop() -> None:
        with Checkpointer(tmp_path) as checkpointer:
            checkpointer.checkpoint(1, model=small_model())
            raise KeyError("the loop's own")

    with pytest.raises(KeyError, match="the loop's own"):
        loop()
    assert Checkpointer(tmp_path).list_existing_checkpoint_indices() == [1]


def test_host_buffers_are_mapped_once_and_share_what_is_shared() -> None:
    """The second copy costs no page faults; tied tensors are copied once."""
    buffers = HostBuffers()
    big = torch.randn(1000, 1000)
    tensors = {
        "a": big,
        "alias": big,
        "transposed": big.t(),
        "half": big.to(torch.bfloat16),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "expanded": torch.ones(1, 3).expand(4, 3),
        "parameter": nn.Parameter(torch.ones(2)),
    }
    first = buffers.copy(tensors).tensors
    for name, tensor in tensors.items():
        assert same_bytes(first[name], tensor.detach().resolve_conj()), name
        assert first[name].is_contiguous()
        assert not first[name].requires_grad
    assert first["a"].data_ptr() == first["alias"].data_ptr()
    pointers = {name: tensor.data_ptr() for name, tensor in first.items() if tensor.numel()}
    big.add_(1)
    second = buffers.copy(tensors).tensors
    assert {n: t.data_ptr() for n, t in second.items() if t.numel()} == pointers
    assert same_bytes(second["a"], big)
    larger = buffers.copy({**tensors, "more": torch.ones(10_000_000)}).tensors
    assert same_bytes(larger["a"], big)
    assert buffers.copy({}).tensors == {}
