"""A store that is away for 20 seconds in the middle of a save, as a server that is restarted."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from contract.test_store_faults import URL, check, model_of
from ray_imuckpt import Checkpointer
from ray_imuckpt.storage.engines import retrying
from tools.simulated_store import Settings, SimulatedStore

DOWN = 20.0  # seconds
PARAMETERS = {"obstore": {}, "s3fs": {"config_kwargs": {"user_agent_extra": "tests"}}}


@pytest.mark.slow
@pytest.mark.usefixtures("loopback_only")
@pytest.mark.parametrize("engine", PARAMETERS)
@pytest.mark.parametrize("kind", ["create upload", "upload part", "complete upload"])
def test_a_store_that_is_away_for_twenty_seconds_fails_no_save(
    simulated_store: SimulatedStore, engine: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the patience that is usual, and the waits of a real run."""
    monkeypatch.setattr(retrying, "FIRST_SPAN", 0.2)
    options: dict[str, Any] = simulated_store.options | PARAMETERS[engine]
    run = Checkpointer(URL, storage_options=options, blocking=True)
    run.start(model_of(0))
    simulated_store.configure(Settings(rate=20e6, latency=0.1))
    simulated_store.reset()
    save = threading.Thread(target=run.checkpoint, args=(1,), kwargs={"model": model_of(1)})
    save.start()
    while not simulated_store.report().requests.get(kind):
        time.sleep(0.001)
    with simulated_store.down():
        save.join(DOWN)
        assert save.is_alive()
    began = time.monotonic()
    save.join()
    print(f"\n{engine}, {kind}: durable {time.monotonic() - began:.1f} s after it came back")
    simulated_store.configure(Settings())
    check(options, epochs={1})
