"""Retention, retries and tolerated failures on an object store that is slow or down."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torch import nn

from ray_imuckpt import Checkpointer, Retention, Retries, SaveFailedError, StorageError
from support.round_trips import check_round_trips
from tools.simulated_store import Action, Fault, SimulatedStore

MODEL = nn.Linear(2, 2)
URL = "s3://bucket/run"


def test_many_checkpoints_are_deleted_at_once(simulated_store: SimulatedStore) -> None:
    """23 go in fewer round trips than there are of them; no data file is read for it."""

    def saved() -> Checkpointer:
        made = Checkpointer(URL, storage_options=simulated_store.options, blocking=True)
        for epoch in range(1, 25):
            made.checkpoint(epoch, model=MODEL, metrics={"loss": epoch})
        return made

    def prune(checkpointer: Checkpointer) -> None:
        assert checkpointer.prune(keep_last=1) == list(range(1, 24))

    report = check_round_trips(simulated_store, 28, saved, prune)
    checkpointer = Checkpointer(URL, storage_options=simulated_store.options)
    assert not [seen for seen in report.log if seen.kind == "get" and ".safetensors" in seen.key]
    assert checkpointer.list_existing_checkpoint_indices() == [24]
    checkpointer.verify(24)


def test_after_a_commit_one_goes_in_a_few_round_trips(simulated_store: SimulatedStore) -> None:
    """A listing, a look, three to delete; read are the manifests of what goes and what stays."""

    def saved() -> Checkpointer:
        made = Checkpointer(
            URL,
            storage_options=simulated_store.options,
            blocking=True,
            retention=Retention(keep_last=2, keep_best=("loss", "min")),
        )
        for epoch in range(1, 6):
            made.checkpoint(epoch, model=MODEL, metrics={"loss": epoch})
        assert made.list_existing_checkpoint_indices() == [1, 4, 5]
        return made

    def save(checkpointer: Checkpointer) -> None:
        checkpointer.checkpoint(6, model=MODEL, metrics={"loss": 6})

    log = check_round_trips(simulated_store, 4 + 5, saved, save).log
    checkpointer = Checkpointer(URL, storage_options=simulated_store.options)
    read = [seen.key for seen in log if seen.kind == "get" and "manifest" in seen.key]
    assert sorted(read) == [f"run/checkpoint={epoch}/manifest.json" for epoch in (1, 4, 6, 6)]
    assert checkpointer.list_existing_checkpoint_indices() == [1, 5, 6]
    assert not [seen for seen in log if seen.kind == "get" and ".safetensors" in seen.key]


def test_how_often_something_is_tried_is_the_users_choice(simulated_store: SimulatedStore) -> None:
    """One try fails where two would do."""
    options = simulated_store.options
    for attempts in (1, 5):
        checkpointer = Checkpointer(
            f"{URL}-{attempts}",
            storage_options=options,
            blocking=True,
            retries=Retries(attempts=attempts, deadline=600),
        )
        simulated_store.fail(Fault(Action.SLOW_DOWN, kind="put", key="model-", times=1))
        if attempts == 1:
            with pytest.raises(SaveFailedError):
                checkpointer.checkpoint(1, model=MODEL)
        else:
            checkpointer.checkpoint(1, model=MODEL)
        expected = [] if attempts == 1 else [1]
        assert checkpointer.list_existing_checkpoint_indices() == expected


@pytest.mark.parametrize("way", ["URL", "Checkpoint", "pointer"])
def test_that_choice_holds_for_whatever_is_read(simulated_store: SimulatedStore, way: str) -> None:
    """Also where a checkpoint is named by its URL, by Ray, or by a pointer."""
    checkpointer = Checkpointer(
        URL, storage_options=simulated_store.options, retries=Retries(attempts=3), blocking=True
    )
    checkpointer.checkpoint(1, model=MODEL)
    told: Any = checkpointer.path_to_checkpoint(1)
    if way == "Checkpoint":
        told = checkpointer.get(1)
    if way == "pointer":
        pointer = json.dumps({"url": told}).encode()
        simulated_store.put("elsewhere/imuckpt-pointer.json", pointer)
        told = "s3://bucket/elsewhere"
    checkpointer.read(told)
    simulated_store.fail(Fault(Action.SLOW_DOWN, "get", key="run/.*manifest", times=None))
    with pytest.raises(StorageError, match="SlowDown"):
        checkpointer.read(told)
    assert simulated_store.met() == [3]


def test_training_goes_on_while_the_store_is_down(simulated_store: SimulatedStore) -> None:
    """Nothing torn is listed, nothing committed is lost, and old ones go again once it is up."""
    checkpointer = Checkpointer(
        URL,
        storage_options=simulated_store.options,
        on_save_error="warn",
        max_failed_saves=2,
        retention=Retention(keep_last=1),
        retries=Retries(attempts=2, deadline=1),
    )
    checkpointer.start(MODEL)
    checkpointer.checkpoint(1, model=MODEL)
    checkpointer.wait()
    with simulated_store.down():
        for epoch in (2, 3):
            pending = checkpointer.checkpoint(epoch, model=MODEL)
            assert pending is not None
            pending.wait()
            assert isinstance(pending.error, SaveFailedError)
    assert Checkpointer(URL, storage_options=simulated_store.options).read(1).epoch == 1
    checkpointer.checkpoint(4, model=MODEL)
    checkpointer.wait()
    assert checkpointer.list_existing_checkpoint_indices() == [4]
    checkpointer.verify(4)
