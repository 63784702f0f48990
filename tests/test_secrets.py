"""No secret is told: by no error, log, repr, file or command, whatever a store answers."""

from __future__ import annotations

import logging
import pickle
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

import ray_imuckpt
from ray_imuckpt import Checkpointer, Retries
from ray_imuckpt.cli.dispatch import main
from ray_imuckpt.storage import open_storage
from ray_imuckpt.storage.engines.obstore_errors import raised_as_oserror
from tools.simulated_store import Action, Fault, SimulatedStore

SECRET = "Kx7secretQ"
MODEL = nn.Linear(1, 1)

pytestmark = pytest.mark.usefixtures("loopback_only")


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """All that is told; with it, what this package logs."""
    caplog.set_level(logging.DEBUG, logger="ray_imuckpt")
    return []


def listen(told: list[str], call: Callable[[], Any]) -> Any:
    """Call, and note what is returned or raised, in each form that a user may see."""
    try:
        found = call()
    except Exception as error:  # noqa: BLE001 - all that a user may see
        whole = traceback.format_exception(type(error), error, error.__traceback__)
        told += [str(error), repr(error), repr(pickle.dumps(error)), *whole[-1:], "".join(whole)]
        return None
    told += [str(found), repr(found)]
    return found


def use(told: list[str], url: str, options: dict[str, Any]) -> None:
    """Do what a user does with a directory."""
    retries = Retries(attempts=2, deadline=5)
    listen(told, lambda: ray_imuckpt.load(MODEL, f"{url}/checkpoint=1"))
    made = listen(told, lambda: Checkpointer(url, storage_options=options, retries=retries))
    if made is None:
        return
    told += [repr(made.saving), repr(made.retries), repr(made._opening), repr(made._training)]
    with tempfile.TemporaryDirectory() as here:
        place = f"{url}/checkpoint=1"
        begun = Checkpointer(here, continue_from=place, storage_options=options, retries=retries)
        told.append(repr(begun))
        listen(told, lambda: begun.start(MODEL))
    storage = listen(told, lambda: open_storage(url, options, retries))
    told += [repr(vars(part)) for part in (storage, getattr(storage, "_engine", None)) if part]
    listen(told, lambda: made.start(MODEL))
    pending = listen(told, lambda: made.checkpoint(1, model=MODEL, metrics={"loss": 1.0}))
    if pending is not None:
        listen(told, pending.wait)
        told += [repr(pending), repr(pending.error)]
    listen(told, lambda: made.get(1))
    listen(told, made.run_config)


BY_S3FS: dict[str, Any] = {"config_kwargs": {"user_agent_extra": "tests"}}
FAULTS: list[tuple[Action | None, dict[str, Any]]] = [
    *((None, {}), (Action.SLOW_DOWN, {}), (Action.DENIED, {}), (Action.EXPIRED, {})),
    *((None, BY_S3FS), (Action.DENIED, BY_S3FS)),
]


@pytest.mark.parametrize(("fault", "more"), FAULTS)
def test_no_credentials_are_told(
    told: list[str],
    simulated_store: SimulatedStore,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fault: Action | None,
    more: dict[str, Any],
) -> None:
    """Neither key, secret nor token: in files, logs, errors, reprs and the command's output."""
    given = {"key": f"{SECRET}1", "secret": f"{SECRET}2", "token": f"{SECRET}3"}
    for name, value in zip(
        ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"), given.values(), strict=True
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", simulated_store.endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    options = given | {"endpoint_url": simulated_store.endpoint} | more
    if fault is not None:
        simulated_store.fail(Fault(fault, times=None))
    use(told, "s3://bucket/run", options)
    main(["ls", "s3://bucket/run"])
    simulated_store.fail()
    told += [simulated_store.get(key).decode("latin-1") for key in simulated_store.objects()]
    assert bool(simulated_store.objects()) == (fault is None)
    check(told, caplog, capsys)


WITH_SECRETS: list[tuple[str, dict[str, Any]]] = [
    (f"sftp://user:{SECRET}@127.0.0.1:1/run", {}),
    (f"sftp://user:a@{SECRET}@127.0.0.1:1/run", {}),
    (f"sftp://user:{SECRET}/a@127.0.0.1:1/run", {}),
    (f"sftp://user:{SECRET}@127.0.0.1:1/run/checkpoint=4", {}),
    (f"sftp:/user:{SECRET}@127.0.0.1:1/run", {}),
    (f"zip::sftp://user:{SECRET}@127.0.0.1:1/run", {}),
    (f"simplecache::ftp://user:{SECRET}@127.0.0.1:1/run", {}),
    (f"stfp://user:{SECRET}@127.0.0.1:1/run", {}),
    (f"https://user:{SECRET}@127.0.0.1:1/run", {}),
    (f"https://127.0.0.1:1/run?sv=1&sig={SECRET}", {}),
    (f"az://container/run?sv=1&sig={SECRET}", {}),
    (f"s3://bucket/run?X-Amz-Signature={SECRET}", {}),
    ("sftp://127.0.0.1:1/run", {"username": "user", "password": SECRET}),
    ("s3://bucket/run", {"endpoint_url": f"http://user:{SECRET}@127.0.0.1:1"}),
    ("s3://bucket/run", {"endpoint_url": "http://:::1/", "key": SECRET, "secret": SECRET}),
    ("gs://bucket/run", {"token": SECRET}),
    ("az://container/run", {"account_name": "a", "account_key": SECRET}),
    ("az://container/run", {"connection_string": SECRET}),
    (
        "az://container/run",
        {
            "connection_string": "BlobEndpoint=http://127.0.0.1:1/a;AccountName=a;"
            f"SharedAccessSignature=sv=1&sig={SECRET}"
        },
    ),
]


@pytest.mark.parametrize(("url", "options"), WITH_SECRETS)
def test_no_secret_of_a_url_or_an_option_is_told(
    told: list[str],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    url: str,
    options: dict[str, Any],
) -> None:
    """Whether it is refused, misspelled, or leads to where nothing answers."""
    use(told, url, options)
    main(["ls", url])
    check(told, caplog, capsys)


def check(
    told: list[str], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Check that the secret is nowhere in what was told, logged and printed."""
    told += [record.getMessage() for record in caplog.records if record.name == "ray_imuckpt"]
    told += capsys.readouterr()
    assert len(told) > 10
    assert [text for text in told if SECRET in text] == []


def test_what_a_store_tells_of_a_signature_is_left_out() -> None:
    """S3 answers a wrong signature with the key's id and what was to be signed."""
    exceptions = pytest.importorskip("obstore").exceptions
    body = f"<Error><Code>Bad</Code><AWSAccessKeyId>{SECRET}</AWSAccessKeyId></Error>"
    url = f"http://127.0.0.1/b/k?sig={SECRET}&n=1"
    text = f"Error performing GET {url} in 1ms - status code: 403 Forbidden: {body}"
    told: list[str] = []

    def fail() -> None:
        with raised_as_oserror("b/k"):
            raise exceptions.PermissionDeniedError(text)

    listen(told, fail)
    assert "Bad" in told[0]
    assert [text for text in told if SECRET in text] == []
