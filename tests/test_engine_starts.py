"""A store that cannot serve is told at `start`, with its URL and a cure; tiny saves are quick."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
import torch
from torch import nn

from conftest import python_path
from ray_imuckpt import Checkpointer, StorageError
from ray_imuckpt.encoding.chunks import Chunks
from ray_imuckpt.storage import open_storage
from ray_imuckpt.storage.engines import s3_options
from ray_imuckpt.storage.engines.connection import UnknownOptionError
from support.programs import HANGS
from support.round_trips import check_round_trips
from tools.simulated_store import Action, Fault, SimulatedStore

BY_FSSPEC = {"config_kwargs": {"user_agent_extra": "tests"}}


@pytest.fixture(params=["obstore", "s3fs"])
def options(request: pytest.FixtureRequest, simulated_store: SimulatedStore) -> dict[str, Any]:
    """Options by which either engine reaches the simulated store."""
    return simulated_store.options | (BY_FSSPEC if request.param == "s3fs" else {})


@pytest.mark.parametrize(
    ("fault", "cure"),
    [
        (Action.DENIED, "right to list, read, write"),
        (Action.EXPIRED, "Renew the credentials"),
        (Action.SLOW_DOWN, "Look at the credentials, the endpoint"),
    ],
    ids=lambda value: value.name if isinstance(value, Action) else "",
)
def test_what_a_store_refuses_is_told_at_start(
    options: dict[str, Any], simulated_store: SimulatedStore, fault: Action, cure: str
) -> None:
    """By its URL and a cure, after a few tries at most."""
    simulated_store.fail(Fault(fault, times=None))
    with pytest.raises(StorageError) as caught:
        Checkpointer("s3://bucket/run", storage_options=options).start(nn.Linear(2, 2))
    assert cure in str(caught.value)
    assert "s3://bucket/run" in str(caught.value)
    assert options["secret"] not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "cure"),
    [
        ({"endpoint_url": "http://127.0.0.1:1"}, "Is the endpoint"),
        ({"nonsense": 1}, "storage_options"),
        ({"client_kwargs": {"nonsense": 1}}, "storage_options"),
    ],
    ids=["down", "option", "inner option"],
)
def test_a_wrong_option_is_told_at_start(
    options: dict[str, Any], wrong: dict[str, Any], cure: str
) -> None:
    """Also where nothing answers; what is wrong is named."""
    checkpointer = Checkpointer("s3://bucket/run", storage_options=options | wrong)
    with pytest.raises(StorageError, match=cure):
        checkpointer.start(nn.Linear(2, 2))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra that is the faster way."""
    import fsspec.core

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    def missing(*_: Any, **__: Any) -> Any:
        raise ImportError("Install s3fs to access S3") from ImportError(name="s3fs")

    monkeypatch.setattr("importlib.metadata.version", absent)
    monkeypatch.setattr("ray_imuckpt.storage.opening.url_to_fs", missing)
    assert fsspec.core is not None
    with pytest.raises(StorageError, match=r"s3fs.*\n.*ray-imuckpt\[obstore\].*pip install s3fs"):
        open_storage("s3://bucket/run")


def test_an_obstore_that_leaves_uploads_is_not_used(
    simulated_store: SimulatedStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Before 0.12 it did not give up an upload of which a part was refused."""
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "0.11.1")
    with caplog.at_level(logging.DEBUG, "ray_imuckpt"):
        open_storage("s3://bucket/run", simulated_store.options)
    assert "by way of fsspec: obstore 0.12 is not installed" in caplog.text


def test_why_fsspec_is_used_is_told(
    simulated_store: SimulatedStore, caplog: pytest.LogCaptureFixture
) -> None:
    """At the level DEBUG, without the option's value."""
    with caplog.at_level(logging.DEBUG, "ray_imuckpt"):
        open_storage("s3://bucket/run", simulated_store.options | {"client_kwargs": {"x": "y-z"}})
    assert "by way of fsspec" in caplog.text
    assert "client_kwargs" in caplog.text
    assert "y-z" not in caplog.text


@pytest.mark.parametrize(
    ("endpoint", "chosen", "unsigned"),
    [
        ("https://host", {}, True),
        ("http://host", {}, False),
        ("http://host", {"payload_signing_enabled": False}, True),
        ("https://host", {"payload_signing_enabled": True}, False),
    ],
)
def test_bodies_are_signed_where_tls_does_not_guard_them(
    endpoint: str, chosen: dict[str, bool], unsigned: bool
) -> None:
    """Unless botocore's own option says otherwise, which obstore heeds as well."""
    left = {"endpoint_url": endpoint, "key": "k", "secret": "s", "config_kwargs": {"s3": chosen}}
    assert s3_options.connection("s3", left).options["unsigned_payload"] is unsigned
    left = {"endpoint_url": endpoint, "config_kwargs": {"s3": {**chosen, "another": 1}}}
    with pytest.raises(UnknownOptionError, match="another"):
        s3_options.connection("s3", left)


def test_a_tiny_save_takes_four_round_trips(
    options: dict[str, Any], simulated_store: SimulatedStore
) -> None:
    """Data, then sizes and records, then the manifest, then a look at the record."""

    def saved() -> Checkpointer:
        made = Checkpointer("s3://bucket/run", storage_options=options, blocking=True)
        made.start(nn.Linear(2, 2))
        made.checkpoint(1, model=nn.Linear(2, 2))
        return made

    check_round_trips(
        simulated_store, 4, saved, lambda made: made.checkpoint(2, model=nn.Linear(2, 2))
    )


def test_a_tiny_restore_takes_four_round_trips(
    options: dict[str, Any], simulated_store: SimulatedStore
) -> None:
    """A probe, then the listing and the record, then the manifest, then all data."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()

    def saved() -> Checkpointer:
        with Checkpointer("s3://bucket/run", storage_options=options, blocking=True) as made:
            made.start(model, optimizer)
            made.checkpoint(1, model=model, optimizer=optimizer)
        return Checkpointer("s3://bucket/run", storage_options=options)

    def start(another: Checkpointer) -> None:
        assert another.start(model, optimizer).start_epoch == 2

    check_round_trips(simulated_store, 4, saved, start)
    # the manifest, then all of the model
    check_round_trips(simulated_store, 2, saved, lambda another: another.load(model, 1))


@pytest.mark.parametrize("more", [{}, BY_FSSPEC], ids=["obstore", "s3fs"])
def test_credentials_that_expire_are_looked_up_anew(
    simulated_store: SimulatedStore, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    """Once, in the middle of a run, where they were not given but found."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OLD")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    options = {"endpoint_url": simulated_store.endpoint} | more
    with Checkpointer("s3://bucket/run", storage_options=options, blocking=True) as checkpointer:
        checkpointer.start(nn.Linear(2, 2))
        storage = open_storage("s3://bucket/run", options)
        storage.put("m", b"1")
        simulated_store.fail(Fault(Action.EXPIRED, access_key="OLD", times=None))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NEW")
        storage.put("m", b"2")
        assert storage.get("m") == b"2"
        checkpointer.checkpoint(1, model=nn.Linear(2, 2))
        assert checkpointer.list_existing_checkpoint_indices() == [1]


def test_an_upload_that_was_left_is_listed_and_given_up(
    options: dict[str, Any], simulated_store: SimulatedStore
) -> None:
    """By either engine, where s3fs is installed."""
    simulated_store.fail(Fault(Action.LOST, "create upload", times=1))
    storage = open_storage("s3://bucket/run", options)
    content = Chunks([bytes(12_000_000)])
    storage.write("checkpoint=1/a", content, lambda _index, _views: None)
    (left,) = storage.uploads()
    assert left.name == "checkpoint=1/a"
    storage.abort(left)
    assert simulated_store.uploads() == []


HTTP = {"endpoint_url": "http://127.0.0.1:9"}
ALWAYS = {"config_kwargs": {"request_checksum_calculation": "when_supported"}}


@pytest.mark.parametrize(
    ("options", "calculated"),
    [
        (HTTP, "when_required"),
        ({"client_kwargs": HTTP}, "when_required"),
        (HTTP | ALWAYS, "when_supported"),
        ({"endpoint_url": "https://127.0.0.1:9"}, None),
        ({}, None),
        (HTTP | {"anon": True}, None),
        (HTTP | {"config_kwargs": {"s3": {"payload_signing_enabled": False}}}, None),
    ],
    ids=["plain", "inside", "as the user says", "TLS", "Amazon's", "nobody", "not signed"],
)
def test_s3fs_hashes_a_body_once(options: dict[str, Any], calculated: str | None) -> None:
    """Without TLS the signature covers it, with TLS a CRC-32 does; and who says so has both."""
    config = s3_options.for_botocore(options)["config_kwargs"]
    assert config.get("request_checksum_calculation") == calculated


def test_threads_that_begin_with_a_store_wait_for_each_others_import() -> None:
    """Its client's exceptions are there only once the whole of it is: a command asks at once."""
    pytest.importorskip("obstore")
    code = (
        "import importlib.abc, sys, threading, time\n"
        "begun = threading.Event()\n"
        "class Slow(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'obstore._obstore': begun.set(); time.sleep(0.3)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "from ray_imuckpt.storage.engines.obstore_errors import raised_as_oserror\n"
        "threading.Thread(target=__import__, args=('obstore',)).start()\n"
        "begun.wait()\n"
        "with raised_as_oserror('name'): pass\n"
    )
    subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": python_path()}, check=True, timeout=HANGS
    )
