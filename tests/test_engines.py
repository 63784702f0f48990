"""Either engine moves the same bytes under the same options, and what passes is tried again."""

from __future__ import annotations

import logging
import os
import tracemalloc
from typing import Any

import pyarrow.fs
import pytest

from ray_imuckpt.encoding.chunks import Chunks
from ray_imuckpt.options import Retries
from ray_imuckpt.storage import Storage, from_arrow, open_storage
from ray_imuckpt.storage.content import NewFile
from ray_imuckpt.storage.engines import fsspec_uploads
from tools.simulated_store import Action, Fault, Settings, SimulatedStore

MIB = 1024 * 1024
BY_FSSPEC = {"config_kwargs": {"user_agent_extra": "tests"}}  # obstore has no counterpart for it
PASSING = [
    Action.ERROR,
    Action.SLOW_DOWN,
    Action.RESET_REQUEST,
    Action.LOST,
]


@pytest.fixture(params=["obstore", "s3fs"])
def storage(request: pytest.FixtureRequest, simulated_store: SimulatedStore) -> Storage:
    """A directory of the simulated store behind each engine."""
    options = simulated_store.options | (BY_FSSPEC if request.param == "s3fs" else {})
    made = open_storage("s3://bucket/run", options, Retries(attempts=4, deadline=30))
    assert engine_of(made).name == {"obstore": "obstore", "s3fs": "S3FileSystem"}[request.param]
    return made


def engine_of(storage: Any) -> Any:
    return storage._engine.engine


def new_file(name: str, data: bytes) -> NewFile:
    return NewFile(name, Chunks([data[:100], data[100:]]), lambda _index, _views: None)


def test_files_of_any_size_arrive_as_they_are(
    storage: Storage, simulated_store: SimulatedStore
) -> None:
    """All at once; those of several parts as well; nothing is left of the uploads."""
    sizes = [0, 1, 5 * MIB, 5 * MIB + 1, 13 * MIB, 40 * MIB]
    data = {f"a/{size}": os.urandom(1000) * (size // 1000 + 1) for size in sizes}
    data = {name: value[: int(name[2:])] for name, value in data.items()}
    storage.write_all([new_file(name, value) for name, value in data.items()])
    for name, value in data.items():
        assert simulated_store.get(f"run/{name}") == value
        assert storage.size(name) == len(value)
        buffer = bytearray(len(value))
        views = [memoryview(buffer)[:7], memoryview(buffer)[7:]]
        storage.read_into(name, 0, views, lambda _: None)
        assert buffer == value
    assert simulated_store.uploads() == []
    assert simulated_store.report().peak_requests <= 16


@pytest.mark.parametrize("storage", ["s3fs"], indirect=True)
@pytest.mark.parametrize("files", [1, 8])
def test_nothing_that_is_sent_is_copied_as_a_whole(
    storage: Storage, simulated_store: SimulatedStore, files: int
) -> None:
    """A piece of what each of 16 connections sends is all that is copied, however slow they are."""
    storage.put("first", b"1")  # what is imported for a first request counts for nobody
    simulated_store.configure(Settings(rate=50e6))
    data = bytes(40 * MIB // files)
    new = [NewFile(str(number), Chunks([data]), lambda *_: None) for number in range(files)]
    tracemalloc.start()
    try:
        storage.write_all(new)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB
    assert all(simulated_store.get(f"run/{number}") == data for number in range(files))


def test_pyarrow_is_given_no_more_than_it_may_hold(
    simulated_store: SimulatedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has copied is waited for, however fast it takes more than the store does."""
    monkeypatch.setattr(fsspec_uploads, "_AHEAD", 16 * MIB)
    simulated_store.configure(Settings(rate=20e6))
    filesystem = pyarrow.fs.S3FileSystem(
        access_key="nobody",
        secret_key="nothing",
        region="us-east-1",
        endpoint_override=simulated_store.endpoint,
    )
    held: list[int] = []
    observe = lambda *_: held.append(pyarrow.total_allocated_bytes())  # noqa: E731
    data = os.urandom(MIB) * 40
    from_arrow(filesystem, "bucket/run").write("a", Chunks([data], MIB), observe)
    assert 16 * MIB < max(held) < (16 + 8 + 2 * 10) * MIB
    assert simulated_store.get("run/a") == data


class Wanted:
    """A reading that notes how it ended."""

    def __init__(self, name: str, offset: int, size: int) -> None:
        self.name, self.offset, self.size = name, offset, size
        self.buffer = bytearray(size)
        self.views = [memoryview(self.buffer)]
        self.ends: list[Any] = []
        self.bytes_seen = 0

    def seen(self, view: memoryview) -> None:
        self.bytes_seen += len(view)

    def ended(self, error: Any) -> None:
        self.ends.append(error)


def test_many_readings_are_few_requests(storage: Storage, simulated_store: SimulatedStore) -> None:
    """Neighbours are read together, each reading ends once, and one that fails harms no other."""
    data = os.urandom(3 * MIB)
    simulated_store.put("run/f", data)
    simulated_store.reset()
    size = 10_000
    wanted = [Wanted("f", at, size) for at in range(0, 200 * size, size)]
    missing, cut, empty = Wanted("g", 0, 10), Wanted("f", len(data) - 5, 10), Wanted("f", 3, 0)
    storage.read_all([*wanted, missing, cut, empty])
    for one in wanted:
        assert one.buffer == data[one.offset : one.offset + size]
        assert (one.ends, one.bytes_seen) == ([None], size)
    assert isinstance(missing.ends[0], FileNotFoundError)
    assert isinstance(cut.ends[0], EOFError)
    assert empty.ends == [None]
    assert simulated_store.report().requests["get"] <= 4


@pytest.mark.parametrize("action", PASSING, ids=lambda action: action.name)
@pytest.mark.parametrize(
    "kind", ["put", "create upload", "upload part", "complete upload", "get", "list", "head"]
)
def test_what_passes_is_tried_again(
    storage: Storage, simulated_store: SimulatedStore, kind: str, action: Action
) -> None:
    """Whatever request fails, twice, all is there in the end, and nothing is left over."""
    data = os.urandom(1000) * 12_000
    simulated_store.fail(Fault(action, kind, times=2))
    storage.write_all([new_file("a/large", data), new_file("a/small", data[:1000])])
    assert storage.size("a/large") == len(data)
    assert sorted(storage.files("a")) == ["large", "small"]
    assert storage.get("a/small") == data[:1000]
    wanted = Wanted("a/large", 5, len(data) - 5)
    storage.read_all([wanted])
    assert wanted.ends == [None]
    assert wanted.buffer == data[5:]
    # An upload whose name was lost cannot be given up; `prune` sweeps it.
    assert (simulated_store.uploads() == []) is ((kind, action) != ("create upload", Action.LOST))


def test_what_stays_is_told_at_once(storage: Storage, simulated_store: SimulatedStore) -> None:
    """A refusal is not tried again; what was begun is given up."""
    simulated_store.fail(Fault(Action.DENIED, "upload part", times=None))
    with pytest.raises(PermissionError):
        storage.write_all([new_file("a/large", bytes(30 * MIB)), new_file("a/small", b"1")])
    assert simulated_store.objects() == {}
    assert simulated_store.uploads() == []


def test_no_secret_is_told(
    storage: Storage, simulated_store: SimulatedStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither by an error nor in the log nor by a repr."""
    secret = simulated_store.options["secret"]
    simulated_store.fail(Fault(Action.ERROR, "get", times=None))
    with caplog.at_level(logging.DEBUG, "ray_imuckpt"), pytest.raises(OSError) as caught:
        storage.get("a")
    told = f"{caught.value!r} {caught.value.__cause__!r} {caplog.text} {vars(engine_of(storage))}"
    assert secret not in told
    assert "failed, and is tried again" in caplog.text
