"""The simulated store fails as it is told to, and tells what it was asked."""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from servers.wire import Wire, completion, send_part
from tools.simulated_store import Action, Fault, Seen, Settings, SimulatedStore, bodies

BROKEN = (ConnectionError, http.client.HTTPException)


@pytest.fixture
def wire(simulated_store: SimulatedStore) -> Iterator[Wire]:
    """Plain HTTP to the simulated store, which holds one object."""
    simulated_store.put("old", bytes(range(200)))
    simulated_store.reset()
    wire = Wire(simulated_store.endpoint)
    yield wire
    wire.close()


@pytest.mark.parametrize(
    ("action", "status", "code"),
    [
        (Action.ERROR, 500, b"<Code>InternalError"),
        (Action.SLOW_DOWN, 503, b"<Code>SlowDown"),
        (Action.DENIED, 403, b"<Code>AccessDenied"),
        (Action.EXPIRED, 400, b"<Code>ExpiredToken"),
        (Action.CONFLICT, 409, b"<Code>ConditionalRequestConflict"),
        (Action.ERROR_INSIDE, 200, b"<Code>InternalError"),
        (Action.VANISHED, 200, b""),
    ],
    ids=lambda value: value.name if isinstance(value, Action) else "",
)
def test_what_is_refused_is_not_done(
    wire: Wire, simulated_store: SimulatedStore, action: Action, status: int, code: bytes
) -> None:
    """The next request is well again."""
    simulated_store.fail(Fault(action, "put"))
    found, body, _ = wire.ask("PUT", "/bucket/new", b"1")
    assert (found, code in body) == (status, True)
    assert list(simulated_store.objects()) == ["old"]
    assert wire.status("PUT", "/bucket/new", b"1") == 200
    assert simulated_store.get("new") == b"1"
    assert simulated_store.met() == [1]


@pytest.mark.parametrize(
    ("action", "done"),
    [(Action.RESET_REQUEST, False), (Action.LOST, True), (Action.LATE, False)],
    ids=["reset", "lost", "late"],
)
def test_a_connection_that_breaks_tells_nothing_of_what_was_done(
    wire: Wire, simulated_store: SimulatedStore, action: Action, done: bool
) -> None:
    """Nothing, all, or later."""
    simulated_store.fail(Fault(action, "put", key="^new$"))
    with pytest.raises(BROKEN):
        wire.ask("PUT", "/bucket/new", bytes(1_000_000))
    assert ("new" in simulated_store.objects()) is done
    assert simulated_store.deliver() == (action is Action.LATE)
    assert ("new" in simulated_store.objects()) is (action is not Action.RESET_REQUEST)


def test_a_late_put_is_done_under_its_condition(
    wire: Wire, simulated_store: SimulatedStore
) -> None:
    """It does not replace what came meanwhile."""
    simulated_store.fail(Fault(Action.LATE, "put"))
    with pytest.raises(BROKEN):
        wire.ask("PUT", "/bucket/new", b"late", If_None_Match="*")
    simulated_store.put("new", b"meanwhile")
    assert simulated_store.deliver() == 1
    assert simulated_store.get("new") == b"meanwhile"


def test_an_answer_breaks_off_or_is_cut(wire: Wire, simulated_store: SimulatedStore) -> None:
    """In the middle of its body; or it looks whole and is not."""
    simulated_store.fail(Fault(Action.SHORT, "get"), Fault(Action.RESET_ANSWER, "get"))
    assert wire.ask("GET", "/bucket/old")[1] == bytes(range(100))
    with pytest.raises(BROKEN):
        wire.ask("GET", "/bucket/old")
    assert simulated_store.met() == [1, 1]


def test_silence_lasts_until_the_faults_change(wire: Wire, simulated_store: SimulatedStore) -> None:
    """No clock is involved; what was asked is not done."""
    simulated_store.fail(Fault(Action.SILENCE, "delete"))
    raised: list[Exception] = []

    def ask() -> None:
        try:
            wire.ask("DELETE", "/bucket/old")
        except BROKEN as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not simulated_store.met()[0]:
        pass
    assert thread.is_alive()
    simulated_store.fail()
    thread.join()
    assert raised
    assert "old" in simulated_store.objects()


def test_a_part_that_vanished_fails_the_upload(wire: Wire, simulated_store: SimulatedStore) -> None:
    """Though it was answered as kept."""
    simulated_store.fail(Fault(Action.VANISHED, "upload part"))
    upload = wire.begin("f")
    tag = send_part(wire, "f", upload, 1, b"x")
    assert wire.status("POST", f"/bucket/f?uploadId={upload}", completion((1, tag))) == 400


def test_a_fault_is_of_some_requests(wire: Wire, simulated_store: SimulatedStore) -> None:
    """By kind, name and access key; after some and for some times; the first that fits acts."""
    simulated_store.fail(
        Fault(Action.ERROR, "get", key="o.d", skip=1, times=2),
        Fault(Action.DENIED, access_key="expired", times=None),
        Fault(Action.SLOW_DOWN, "list", key="^run/"),
    )
    assert [wire.status("GET", "/bucket/old") for _ in range(4)] == [200, 500, 500, 200]
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=expired/20260101/x/s3/aws4_request"}
    assert [wire.status("GET", "/bucket/old", b"", **signed) for _ in range(3)] == [403] * 3
    assert wire.status("GET", "/bucket?list-type=2&prefix=other/") == 200
    assert wire.status("GET", "/bucket?list-type=2&prefix=run/") == 503
    assert simulated_store.met() == [2, 3, 1]


def test_a_listing_lags_behind(wire: Wire, simulated_store: SimulatedStore) -> None:
    """By as many changes as is wanted; objects themselves do not."""
    simulated_store.put("new", b"1")
    simulated_store.delete("old")
    seen = {}
    for lag in range(4):
        simulated_store.configure(Settings(lag=lag))
        seen[lag] = wire.texts("/bucket?list-type=2", "Key")
    assert seen == {0: ["new"], 1: ["new", "old"], 2: ["old"], 3: []}
    assert wire.status("GET", "/bucket/old") == 404


def test_the_clock_can_be_ahead(wire: Wire, simulated_store: SimulatedStore) -> None:
    """What is put then is of that time."""
    wire.status("PUT", "/bucket/now", b"1")
    simulated_store.configure(Settings(ahead=86_400.0))
    wire.status("PUT", "/bucket/then", b"1")
    days = [moment[:10] for moment in wire.texts("/bucket?list-type=2", "LastModified")]
    assert days[0] == days[1] < days[2]


def test_objects_and_uploads_outlive_a_crash(wire: Wire, simulated_store: SimulatedStore) -> None:
    """Connections break, new ones are refused, and the same endpoint is there again after."""
    upload = wire.begin("f")
    simulated_store.go_down()
    with pytest.raises(BROKEN):
        wire.ask("GET", "/bucket/old")
    with pytest.raises(ConnectionRefusedError):
        Wire(simulated_store.endpoint).ask("GET", "/bucket/old")
    simulated_store.come_up()
    assert wire.ask("GET", "/bucket/old")[1] == bytes(range(200))
    assert simulated_store.uploads() == [("f", 0)]
    assert upload


@pytest.fixture
def store() -> Iterator[SimulatedStore]:
    """A store of this test alone: clients of others may have left connections open."""
    with SimulatedStore() as made:
        yield made


def test_requests_are_counted(store: SimulatedStore) -> None:
    """By kind, with their bytes, those at once, and those one after the other."""
    store.put("old", bytes(range(200)))
    store.reset()
    answered = threading.Barrier(4)  # nobody hangs up before all have come

    def ask(_: int) -> None:
        with contextlib.closing(Wire(store.endpoint)) as another:
            another.ask("GET", "/bucket/new")
            answered.wait()

    with contextlib.closing(Wire(store.endpoint)) as wire:
        wire.ask("PUT", "/bucket/new", bytes(30))
        wire.ask("GET", "/bucket/old", Range="bytes=0-9")
        wire.ask("GET", "/bucket/none")
        store.configure(Settings(latency=0.05))
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(ask, range(4)))
    report = store.report()
    assert report.requests == {"put": 1, "get": 6}
    assert report.bytes_in == 30
    assert report.bytes_out >= 10 + 4 * 30
    assert report.refused == 1
    assert report.peak_connections == report.connections == 5
    assert 1 <= report.peak_requests <= 4
    assert 4 <= report.round_trips <= 7
    assert report.log[:2] == [Seen("put", "new", ""), Seen("get", "old", "bytes=0-9")]


def test_a_rate_is_kept_by_the_bytes_that_are_under_way(
    wire: Wire, simulated_store: SimulatedStore
) -> None:
    """Slow or not, the bytes are the same."""
    simulated_store.configure(Settings(rate=50e6))
    data = bytes(range(256)) * 8192
    wire.ask("PUT", "/bucket/large", data)
    assert wire.ask("GET", "/bucket/large")[1] == data


def test_a_rate_is_kept_however_a_body_tells_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends chunks, as pyarrow does, is no faster than one that does not."""
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=slept.append)
    monkeypatch.setattr(bodies, "time", clock)
    chunked = b"64\r\n" + bytes(100) + b"\r\n" + b"32\r\n" + bytes(50) + b"\r\n0\r\n\r\n"
    for headers, sent in (
        ({"content-length": "150"}, bytes(150)),
        ({"transfer-encoding": "chunked"}, chunked),
    ):
        slept.clear()
        body = bodies.read(io.BufferedReader(io.BytesIO(sent)), headers, rate=10)
        assert b"".join(body) == bytes(150)
        assert slept[-1] == 15


def test_a_client_that_breaks_off_does_nothing(wire: Wire, simulated_store: SimulatedStore) -> None:
    """An object whose bytes did not all come is not put."""
    host, port = simulated_store.endpoint.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(b"PUT /bucket/new HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf")
    assert wire.status("GET", "/bucket/new") == 404


def test_a_command_that_is_not_known_is_an_error(simulated_store: SimulatedStore) -> None:
    """A test that misspells something learns it."""
    with pytest.raises(ValueError, match="no command"):
        simulated_store._tell("explode")
    with pytest.raises(ValueError, match="NoSuchBucket"):
        simulated_store.objects("nowhere")
