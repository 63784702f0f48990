"""Whatever an object store does amid a save: nothing torn is listed, nothing is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from conftest import same_bytes
from ray_imuckpt import Checkpointer, SaveFailedError, StorageError
from ray_imuckpt.encoding.chunks import Chunks
from ray_imuckpt.options import Retries
from ray_imuckpt.storage import Storage, open_storage
from ray_imuckpt.storage.engines.protocol import MIB
from tools.simulated_store import Action, Fault, Settings, SimulatedStore

pytestmark = pytest.mark.usefixtures("loopback_only")

URL = "s3://bucket/run"
MANIFEST = "manifest.json$"


@pytest.fixture(params=["obstore", "s3fs"])
def options(request: pytest.FixtureRequest, simulated_store: SimulatedStore) -> dict[str, Any]:
    """The options under which each engine serves."""
    if request.param == "s3fs":  # an option that obstore has no counterpart for
        return simulated_store.options | {"config_kwargs": {"user_agent_extra": "tests"}}
    return simulated_store.options


def checkpointer(options: dict[str, Any], attempts: int = 2) -> Checkpointer:
    """Return a Checkpointer that loses its patience soon."""
    made = Checkpointer(blocking=True)
    made._opened = open_storage(URL, options, Retries(attempts=attempts, deadline=600.0))
    return made


def model_of(epoch: int) -> nn.Module:
    """Return a model with an epoch's weights, large enough to be uploaded in parts."""
    torch.manual_seed(epoch)
    return nn.Linear(1200, 1200)


def check(options: dict[str, Any], *, epochs: set[int], perhaps: int = 0) -> None:
    """Check that another process finds these epochs, whole, and perhaps one more."""
    reader = checkpointer(options)
    found = set(reader.list_existing_checkpoint_indices())
    assert epochs <= found <= epochs | {perhaps}
    for epoch in found:
        model = model_of(0)
        reader.load(model, epoch)
        assert same_bytes(dict(model.state_dict()), dict(model_of(epoch).state_dict()))
        reader.verify(epoch)


LASTING = [
    Fault(Action.ERROR, times=None),
    Fault(Action.DENIED, "put", key=MANIFEST, times=None),
    Fault(Action.DENIED, "upload part", times=None),
    Fault(Action.RESET_REQUEST, "put", key=MANIFEST, times=None),
    Fault(Action.LOST, "put", key=MANIFEST, times=None),
    Fault(Action.LATE, "put", key=MANIFEST, times=None),
    Fault(Action.LATE, "complete upload", times=None),
    Fault(Action.LOST, "complete upload", times=None),
    Fault(Action.ERROR_INSIDE, "complete upload", times=None),
    Fault(Action.VANISHED, "upload part", times=None),
]


@pytest.mark.parametrize("fault", LASTING, ids=lambda f: f"{f.action.name}-{f.kind}-{f.key[:8]}")
def test_a_save_that_fails_takes_nothing_with_it(
    options: dict[str, Any], simulated_store: SimulatedStore, fault: Fault
) -> None:
    """What was committed is there, what was not is not or is whole, and the run goes on."""
    run = checkpointer(options)
    run.start(model_of(0))
    run.checkpoint(1, model=model_of(1))
    simulated_store.fail(fault)
    saved = True
    try:
        run.checkpoint(2, model=model_of(2))
    except SaveFailedError:
        saved = False
    simulated_store.fail()
    check(options, epochs={1, 2} if saved else {1}, perhaps=2)
    simulated_store.deliver()
    check(options, epochs={1, 2} if saved else {1}, perhaps=2)
    again = checkpointer(options)
    epoch = again.start(model_of(0)).start_epoch
    again.checkpoint(epoch, model=model_of(epoch))
    check(options, epochs={1, epoch}, perhaps=2)


PASSING = [
    Fault(Action.LOST, "put", key=MANIFEST),
    Fault(Action.ERROR_INSIDE, "complete upload"),
    Fault(Action.VANISHED, "upload part"),
    Fault(Action.SLOW_DOWN, times=3),
    Fault(Action.RESET_REQUEST, "upload part", times=2),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda f: f"{f.action.name}-{f.kind}-{f.key[:8]}")
def test_what_passes_fails_no_save(
    options: dict[str, Any], simulated_store: SimulatedStore, fault: Fault
) -> None:
    """The save is durable when it returns, and leaves no upload behind."""
    run = checkpointer(options, attempts=6)
    run.start(model_of(0))
    simulated_store.fail(fault)
    run.checkpoint(1, model=model_of(1))
    assert simulated_store.met()[0] == fault.times
    simulated_store.fail()
    check(options, epochs={1})
    assert simulated_store.uploads() == []


@pytest.mark.parametrize(
    "fault",
    [
        Fault(Action.RESET_ANSWER, "get", times=2),
        Fault(Action.SHORT, "get", key="safetensors$"),
        Fault(Action.ERROR, "get", times=2),
        Fault(Action.SLOW_DOWN, "list", times=2),
    ],
    ids=lambda f: f"{f.action.name}-{f.kind}",
)
def test_what_passes_fails_no_restore(
    options: dict[str, Any], simulated_store: SimulatedStore, fault: Fault
) -> None:
    """Every byte comes back, of the newest checkpoint."""
    run = checkpointer(options)
    for epoch in (1, 2):
        run.checkpoint(epoch, model=model_of(epoch))
    simulated_store.fail(fault)
    model = model_of(0)
    assert checkpointer(options, attempts=6).start(model).start_epoch == 3
    assert same_bytes(dict(model.state_dict()), dict(model_of(2).state_dict()))


def test_a_store_that_is_killed_and_comes_back_fails_no_save(
    options: dict[str, Any], simulated_store: SimulatedStore
) -> None:
    """In the middle of an upload; `make soak` lets it be down for 20 s."""
    run = checkpointer(options, attempts=10**6)  # how long it is down depends on the deadline alone
    run.start(model_of(0))
    simulated_store.configure(Settings(rate=1e6))  # so that it lasts for seconds
    simulated_store.reset()
    save = threading.Thread(target=run.checkpoint, args=(1,), kwargs={"model": model_of(1)})
    save.start()
    while not simulated_store.report().requests.get("upload part"):
        pass
    with simulated_store.down():
        save.join(0.5)
        assert save.is_alive()
    simulated_store.configure(Settings())
    save.join()
    check(options, epochs={1})


def test_a_store_that_is_down_at_start_is_told_in_seconds(
    options: dict[str, Any], simulated_store: SimulatedStore
) -> None:
    """Before the first epoch, with the URL and what to do."""
    run = checkpointer(options, attempts=2)
    with simulated_store.down(), pytest.raises(StorageError, match=URL) as caught:
        run.start(model_of(0))
    assert caught.value.hint


@pytest.mark.parametrize("lag", [1, 4])
def test_a_listing_that_lags_shows_nothing_torn(
    options: dict[str, Any], simulated_store: SimulatedStore, lag: int
) -> None:
    """An older last checkpoint at most; and prune deletes nothing that is newest."""
    run = checkpointer(options)
    for epoch in (1, 2, 3):
        run.checkpoint(epoch, model=model_of(epoch))
    simulated_store.configure(Settings(lag=lag))
    reader, model = checkpointer(options), model_of(0)
    last = reader.start(model).start_epoch - 1
    assert last in (2, 3)
    assert same_bytes(dict(model.state_dict()), dict(model_of(last).state_dict()))
    checkpointer(options).prune(keep_last=1)
    simulated_store.configure(Settings())
    assert 3 in checkpointer(options).list_existing_checkpoint_indices()
    checkpointer(options).verify(3)


def in_parts(storage: Storage, name: str) -> None:
    """Write a file of three parts."""
    storage.write(name, Chunks([bytes(12 * MIB)], MIB), lambda *_: None)


def read(storage: Storage, name: str) -> None:
    """Read a range of a file."""
    storage.read_into(name, 5, [memoryview(bytearray(9))], lambda _: None)


OPERATIONS: dict[str, tuple[str | None, int, Callable[[Storage], object]]] = {
    # What fails, on how many of its requests at once, in which operation.
    "get": (None, 1, lambda storage: storage.get("small")),
    "range": (
        None,
        1,
        lambda storage: read(storage, "large"),
    ),
    "size": (None, 1, lambda storage: storage.size("small")),
    "put": (None, 1, lambda storage: storage.put("small", b"2")),
    "put of more than one MiB": (None, 1, lambda storage: storage.put("small", bytes(2 * MIB))),
    "list": (None, 1, lambda storage: storage.files("")),
    "delete": (None, 1, lambda storage: storage.delete("small")),
    "begin an upload": ("create upload", 1, lambda storage: in_parts(storage, "new")),
    "send parts": ("upload part", 3, lambda storage: in_parts(storage, "new")),
    "complete an upload": ("complete upload", 1, lambda storage: in_parts(storage, "new")),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_request_is_made_as_often_as_was_said_and_no_more(
    options: dict[str, Any], simulated_store: SimulatedStore, operation: str
) -> None:
    """One layer repeats it: no client below, and nothing above begins the whole file anew."""
    kind, at_once, call = OPERATIONS[operation]
    storage = open_storage(URL, options, Retries(attempts=3, deadline=60))
    storage.put("small", b"1")
    in_parts(storage, "large")
    simulated_store.fail(Fault(Action.SLOW_DOWN, kind, times=None))
    simulated_store.reset()
    with pytest.raises(OSError, match="tries in|SlowDown"):
        call(storage)
    asked = simulated_store.report().requests
    if kind is None:
        assert set(asked.values()) == {3}
    else:
        assert 3 <= asked[kind] <= 3 * at_once
        assert asked["create upload"] == (3 if kind == "create upload" else 1)
    assert simulated_store.uploads() == []


@pytest.mark.parametrize("kind", ["put", "upload part"])
def test_the_deadline_ends_all_tries(
    options: dict[str, Any], simulated_store: SimulatedStore, kind: str
) -> None:
    """It is that of `Retries`, whoever repeats: the next try would be later than the deadline."""
    storage = open_storage(URL, options, Retries(attempts=10**6, deadline=0.5))
    simulated_store.fail(Fault(Action.SLOW_DOWN, kind, times=None))
    simulated_store.reset()
    began = time.monotonic()
    with pytest.raises(OSError, match="tries in"):
        storage.put("small", b"1") if kind == "put" else in_parts(storage, "new")
    assert time.monotonic() - began < 100  # of the usual 120
    assert simulated_store.report().requests[kind] > 1
