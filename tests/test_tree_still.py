"""Plain values are copied by `checkpoint` and encoded by the thread that writes: the same bytes."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from datetime import datetime, timedelta, timezone
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from ray_imuckpt import Checkpointer, UnsupportedStateError
from ray_imuckpt.encoding import tree
from ray_imuckpt.storage.local import LocalStorage
from support.trees import TREES
from support.waiting import PATIENCE

PLAIN: dict[str, Any] = {
    "a log": [{"epoch": i, "loss": 1 / (i + 1), "name": "ä", "best": i == 3} for i in range(2500)],
    "a thousand": list(range(1000)),
    "a thousand and one": [[i] for i in range(1001)],
    "not finite, large, marked": [
        {"a": math.nan, "b": -math.inf, "c": 1 << 5000, "$": 1, "d": -0.0, "e": None, "f": 1 + 2j}
    ]
    * 1500,
    "nested": [{"metrics": {"f1": [0.5, (1, "x")]}, "none": {}, "empty": []}],
    "of columns": {"epoch": list(range(3000)), "seconds": timedelta(1), "raw": b"\x00\xff"},
    "of NumPy": [{"loss": np.float32(0.1), "n": np.int64(3), "ok": np.bool_(True)}],
    "empty": [],
    "a tuple": (1, 2.5, "x"),
    "a scalar": math.inf,
}


def at_once(value: Any) -> bytes:
    return tree.dumps({"first": 1, "log": tree.encode(value, {}, "log"), "last": "x"})


def later(value: Any) -> bytes:
    return tree.dumps({"first": 1, "log": tree.encode_later(value, {}, "log"), "last": "x"})


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_encoded_later_has_the_bytes_that_it_would_have_had_at_once(name: str) -> None:
    """Whether it is cut into slices or not; and it is put off."""
    assert isinstance(tree.encode_later(PLAIN[name], {}, "log"), tree.Still)
    assert later(PLAIN[name]) == at_once(PLAIN[name])


@settings(derandomize=True, deadline=None, max_examples=200)
@given(TREES)
def test_any_tree_has_the_same_bytes(value: Any) -> None:
    """Whatever of it may be put off."""
    assert later([value] * 3) == at_once([value] * 3)


class Level(IntEnum):
    HIGH = 1


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        {1: "a key of another type"},
        OrderedDict(a=1),
        deque([1]),
        bytearray(b"ab"),
        np.zeros(2),
        torch.zeros(2),
        Level.HIGH,
        datetime(2020, 1, 1, tzinfo=timezone.utc),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_may_change_or_be_refused_is_encoded_at_once(value: Any) -> None:
    """With all that it is in."""
    for holder in (value, [{"a": value}], {"a": (1, value)}):
        assert not isinstance(tree.encode_later(holder, {}, "log"), tree.Still)


def test_what_is_refused_is_refused_where_checkpoint_is_called(tmp_path: Path) -> None:
    """Also what contains itself, or is nested too deeply, beside any number of plain entries."""
    own: list[Any] = [1]
    own.append(own)
    deep: Any = 1
    for _ in range(2000):
        deep = [deep]
    for value in (own, deep, print, {"a": object()}):
        log = [*PLAIN["a log"], value]
        with pytest.raises(UnsupportedStateError, match=r"log|nested"):
            Checkpointer(tmp_path / "run").checkpoint(1, model=torch.nn.Linear(1, 1), log=log)
    assert not (tmp_path / "run").exists()


def test_what_the_loop_does_to_its_log_afterwards_is_not_in_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any depth, of the log and of what is passed by keyword."""
    go = threading.Event()
    real = LocalStorage.write

    def write(storage: LocalStorage, name: str, *rest: Any) -> None:
        assert go.wait(PATIENCE)
        real(storage, name, *rest)

    monkeypatch.setattr(LocalStorage, "write", write)
    log: list[dict[str, Any]] = [{"epoch": 1, "lists": [[1], {"a": [2]}], "pair": (1, [3])}]
    config = {"a": {"b": [1, 2]}}
    checkpointer = Checkpointer(tmp_path)
    checkpointer.checkpoint(1, model=torch.nn.Linear(1, 1), log=log, config=config)
    log[0]["epoch"] = 7
    log[0]["lists"][1]["a"].append(7)
    log[0]["pair"][1].append(7)
    log.append({"epoch": 7})
    config["a"]["b"][0] = 7
    go.set()
    checkpointer.wait()
    loaded = checkpointer.read(1)
    assert loaded.log == [{"epoch": 1, "lists": [[1], {"a": [2]}], "pair": (1, [3])}]
    assert loaded.other["config"] == {"a": {"b": [1, 2]}}
