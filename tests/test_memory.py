"""Whose memory is copied, when, and in which pieces."""

from __future__ import annotations

import contextlib
import gc
import threading
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import Wrapper, same_bytes
from ray_imuckpt import Checkpointer, SaveFailedError, UnsupportedStateError
from ray_imuckpt.encoding.tensors import byte_view, memory
from ray_imuckpt.staging import HostBuffers, copies
from ray_imuckpt.storage import local
from support.waiting import PATIENCE

MEGABYTE = 1024 * 1024


def test_what_begins_where_a_parameter_begins_and_is_longer_is_copied_at_once(
    tmp_path: Path,
) -> None:
    """The fence guards parameters alone: nothing holds back who changes the rest."""
    flat = torch.zeros(64)
    parameter = nn.Parameter(flat[:4])
    model = nn.Module()
    model.register_parameter("part", parameter)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    checkpointer = Checkpointer(tmp_path, snapshot="overlap")
    checkpointer.checkpoint(1, model=model, optimizer=optimizer, flat=flat)
    flat.numpy()[10:] = 7.0  # no optimizer does that: nothing waits, and no version counts it
    checkpointer.wait()
    assert checkpointer.read(1).other["flat"].tolist() == [0.0] * 64


def test_what_a_capturable_optimizer_changes_is_copied_at_once(tmp_path: Path) -> None:
    """A CUDA graph that is replayed runs no hooks."""
    model = nn.Linear(3, 3)
    expected = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.param_groups[0]["capturable"] = True
    checkpointer = Checkpointer(tmp_path, snapshot="overlap")
    checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    with torch.no_grad():
        model.weight.zero_()
    checkpointer.wait()
    assert torch.equal(checkpointer.read(1).model["weight"], expected)


def test_something_like_an_optimizer_without_state_may_be_passed_by_keyword(tmp_path: Path) -> None:
    """param_groups alone do not make it one."""

    class Groups:
        param_groups: tuple[Any, ...] = ()

        def state_dict(self) -> dict[str, int]:
            return {"a": 1}

        def load_state_dict(self, state: dict[str, int]) -> None:
            pass

    checkpointer = Checkpointer(tmp_path, snapshot="overlap")
    checkpointer.checkpoint(1, model=nn.Linear(1, 1), groups=Groups())
    checkpointer.wait()
    assert checkpointer.read(1).other["groups"] == {"a": 1}


def test_tensors_without_memory_are_refused_by_name_not_taken_for_one_another(
    tmp_path: Path,
) -> None:
    """Wrapper subclasses and freed storages all begin at address 0."""
    wrapped = nn.Module()
    wrapped.register_parameter("a", nn.Parameter(Wrapper(torch.ones(3)), requires_grad=False))
    freed = nn.Linear(2, 2)
    freed.weight.untyped_storage().resize_(0)
    for model, name in ((wrapped, "a"), (freed, "weight")):
        with pytest.raises(UnsupportedStateError, match=rf"model\['{name}'\] has no memory"):
            Checkpointer(tmp_path / "run").checkpoint(1, model=model)
    assert not (tmp_path / "run").exists()


STRIDED = {
    "channels last": torch.randn(6, 3, 5, 7).to(memory_format=torch.channels_last),
    "transposed": torch.randn(7, 9).t(),
    "one row": torch.randn(1, 9, 7).transpose(1, 2),
    "expanded": torch.randn(1, 4).expand(5, 4),
    "every second": torch.arange(20, dtype=torch.int16)[::2],
    "complex": torch.randn(4, 6, dtype=torch.complex64).t(),
    "one of many": torch.arange(4)[::4],
    "scalar": torch.tensor(2.5),
}


@pytest.mark.parametrize("name", STRIDED)
def test_any_slice_of_a_strided_tensor_is_that_of_its_contiguous_bytes(name: str) -> None:
    """Wherever it begins and ends, in the middle of an element too."""
    tensor = STRIDED[name]
    contiguous = tensor.contiguous()
    whole = bytes(byte_view(contiguous)[:])
    fetched = memory.FetchedBytes(tensor)
    assert len(fetched) == len(whole)
    for begin in range(0, len(whole), 3):
        for end in (begin, begin + 1, begin + 37, len(whole)):
            assert bytes(fetched[begin:end]) == whole[begin:end], (begin, end)


def test_a_blocking_save_of_strided_weights_copies_them_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 8 MiB at a time, not the whole tensor."""
    model = nn.Conv2d(512, 1024, 3)
    model.weight.data = model.weight.data.to(memory_format=torch.channels_last)  # 18 MiB
    made: list[int] = []
    real = memory.FetchedBytes.__getitem__

    def getitem(self: Any, piece: slice) -> memoryview:
        view = real(self, piece)
        made.append(len(view))
        return view

    monkeypatch.setattr(memory.FetchedBytes, "__getitem__", getitem)
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=model)
    assert sum(made) == model.weight.nbytes
    assert max(made) <= 8 * MEGABYTE
    assert same_bytes(Checkpointer(tmp_path).read(1).model, dict(model.state_dict()))


@pytest.mark.parametrize("together", [True, False])
def test_a_copy_of_many_tensors_is_cut_and_shared_out(
    monkeypatch: pytest.MonkeyPatch, *, together: bool
) -> None:
    """Large, turned, complex and tiny ones: each copy has the bytes of its source."""
    if not together:
        monkeypatch.setattr(copies, "_COPY_MANY", None)
    wide = torch.randn(5 * MEGABYTE + 3)  # cut into six
    sources = {
        "wide": wide, "turned": torch.randn(3000, 2000).t(),
        "phase": torch.randn(7, dtype=torch.complex128),
        **{str(n): torch.randn(n) for n in range(400)}, "half": torch.randn(50_001).bfloat16(),
    }  # fmt: skip
    copy = HostBuffers().copy(sources)
    assert same_bytes(copy.tensors, {name: t.contiguous() for name, t in sources.items()})


def test_a_save_in_flight_keeps_nothing_of_the_live_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was gathered for it, on a GPU perhaps, is free for the training that goes on."""
    reached, go = threading.Event(), threading.Event()
    real = local.LocalStorage.write

    def write(storage: local.LocalStorage, *rest: Any) -> None:
        reached.set()
        assert go.wait(PATIENCE)
        real(storage, *rest)

    monkeypatch.setattr(local.LocalStorage, "write", write)
    made = torch.ones(3)
    alive = weakref.ref(made)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.checkpoint(1, model=nn.Linear(1, 1), made=made)
    del made
    assert reached.wait(PATIENCE)
    assert alive() is None
    go.set()
    checkpointer.wait()
    assert checkpointer.read(1).other["made"].tolist() == [1.0] * 3


SHAPE = (7, 1024, 1021)  # of nothing else in this process


class Holder:
    """An object whose state is made anew each time that it is asked for."""

    def state_dict(self) -> dict[str, Any]:
        return {"tensor": torch.ones(SHAPE), "array": np.ones(SHAPE, dtype=np.float32)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def held() -> int:
    """How many tensors and arrays of that shape there are."""
    gc.collect()
    kinds = (torch.Tensor, nn.Parameter, np.ndarray)
    return sum(type(found) in kinds and found.shape == SHAPE for found in gc.get_objects())


@pytest.mark.parametrize("fails", [False, True], ids=["saved", "failed"])
@pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "background"])
def test_a_save_that_has_ended_keeps_nothing_of_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, blocking: bool, fails: bool
) -> None:
    """Not the live tensors, not what was made for it; but for the one copy in the background."""

    def write(*_: object) -> None:
        raise OSError(28, "No space left on device")

    checkpointer = Checkpointer(tmp_path, blocking=blocking)
    before = held()

    def save() -> None:
        model = nn.ParameterDict({"a": nn.Parameter(torch.ones(SHAPE))})
        conjugate = torch.ones(SHAPE, dtype=torch.complex64).conj()
        assert held() > before
        checkpointer.checkpoint(
            1, model=model, log=[torch.ones(SHAPE)], conjugate=conjugate, holder=Holder(),
            per_rank={"mine": Holder()},
        )  # fmt: skip
        checkpointer.wait()

    if fails:
        monkeypatch.setattr(local.LocalStorage, "write", write)
        with contextlib.suppress(SaveFailedError):
            save()
    else:
        save()
    buffers = 0 if blocking else len(checkpointer._training._saver._buffers._laid_out[1])
    assert held() - before <= buffers


def test_a_blocking_save_copies_no_arrays(tmp_path: Path) -> None:
    """They are written from where they are, as tensors are."""
    arrays = [np.full((4, 1024, 1024), number, dtype=np.float32) for number in range(4)]
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.checkpoint(1, model=nn.Linear(1, 1))
    tracemalloc.start()
    try:
        checkpointer.checkpoint(2, model=nn.Linear(1, 1), arrays=arrays)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MEGABYTE
    assert [array[0, 0, 0] for array in checkpointer.read(2).other["arrays"]] == [0, 1, 2, 3]


def test_an_array_that_is_changed_after_checkpoint_is_stored_as_it_was(tmp_path: Path) -> None:
    """Whether it may be written to or not, and is in one piece or not."""
    arrays = {
        "plain": np.arange(20.0),
        "every second": np.arange(20.0)[::2],
        "columns": np.asfortranarray(np.arange(20.0).reshape(4, 5)),
        "read-only": np.arange(20.0),
        "times": np.arange(20).astype("M8[s]"),
        "swapped": np.arange(20, dtype=">i4"),
        "empty": np.zeros((0, 3)),
        "scalar": np.array(2.5),
    }
    arrays["read-only"].flags.writeable = False
    expected = {name: array.copy(order="K") for name, array in arrays.items()}
    checkpointer = Checkpointer(tmp_path)
    checkpointer.checkpoint(1, model=nn.Linear(1, 1), arrays=arrays)
    for array in arrays.values():
        array.flags.writeable = True
        array[...] = 9
    checkpointer.wait()
    for name, array in checkpointer.read(1).other["arrays"].items():
        assert array.dtype == expected[name].dtype, name
        assert np.array_equal(array, expected[name]), name
