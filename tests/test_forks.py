"""Processes that are forked while, or after, a store was used: nothing waits for ever in them."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from conftest import in_a_child
from ray_imuckpt import Checkpointer
from tools.simulated_store import Settings, SimulatedStore

URL = "s3://bucket/run"
MODEL = nn.Linear(600, 600)

pytestmark = pytest.mark.usefixtures("loopback_only")


@pytest.mark.parametrize("more", [{}, {"config_kwargs": {"user_agent_extra": "tests"}}])
def test_a_forked_process_reads_and_saves_beside_its_parent(
    simulated_store: SimulatedStore, more: dict[str, Any]
) -> None:
    """By what it has from its parent, and by what it makes; as a DataLoader's workers would."""
    options = simulated_store.options | more
    checkpointer = Checkpointer(URL, storage_options=options)
    checkpointer.checkpoint(1, model=MODEL)
    checkpointer.wait()
    opened, loaded = checkpointer._storage(), checkpointer.read(1)
    expected = MODEL.weight.detach().numpy().tobytes()
    simulated_store.configure(Settings(latency=0.05))
    checkpointer.checkpoint(2, model=MODEL)  # goes on while the child works

    def child() -> bool:
        other = Checkpointer(f"{URL}-{len(more)}", storage_options=options, blocking=True)
        other.checkpoint(1, model=MODEL)
        other.verify(1)
        return (
            "manifest.json" in opened.files("checkpoint=1")
            # not by torch: OpenMP, once used by the parent, may crash a forked process
            and loaded.model["weight"].numpy().tobytes() == expected
            and Checkpointer(URL, storage_options=options).read(1).epoch == 1
        )

    assert in_a_child(child)
    checkpointer.wait()
    simulated_store.configure(Settings())
    checkpointer.verify(2)
