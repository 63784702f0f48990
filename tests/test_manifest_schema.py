"""docs/manifest.schema.json: what is written follows it, what does not follow it is not read."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from conftest import HERE, adamw, small_model
from ray_imuckpt import Checkpointer
from support.schema import check_all, faults
from test_manifest import BEYOND, FIELDS, WRONG

SEALED = {**FIELDS, "checksum": "0" * 32}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The manifest with another value at a path."""
    fields = copy.deepcopy(SEALED)
    *way, last = path.split(".")
    place: Any = fields
    for step in way:
        place = place[int(step) if isinstance(place, list) else step]
    place[int(last) if isinstance(place, list) else last] = value
    return fields


def test_real_manifests_follow_the_schema(tmp_path: Path) -> None:
    """From scratch, resumed, of a branch; frozen parameters; metrics that are not finite."""
    model = small_model()
    saves: list[tuple[Any, int, Any]] = [
        (None, 1, None),
        ("last", 2, {"loss": float("nan")}),
        (1, 2, {"loss": float("inf"), "a": {"b": [1, 2**1500]}}),
    ]
    for begin, epoch, metrics in saves:
        checkpointer = Checkpointer(tmp_path, continue_from=begin, blocking=True)
        checkpointer.start(model, adamw(model))
        checkpointer.checkpoint(epoch, model=model, optimizer=adamw(model), metrics=metrics, x={1})
        assert check_all(tmp_path) == epoch
    last = json.loads((tmp_path / "checkpoint=2" / "manifest.json").read_bytes())
    assert last["ancestors"]
    assert last["parent"]["epoch"] == 1
    assert "model_frozen" in {entry["part"] for entry in last["files"]}


def test_the_manifests_that_stay_readable_for_ever_follow_the_schema() -> None:
    """Those of tests/golden."""
    assert check_all(HERE / "golden") >= 2


@pytest.mark.parametrize(("path", "value"), WRONG, ids=lambda v: repr(v)[:40])
def test_what_a_reader_refuses_the_schema_refuses(path: str, value: Any) -> None:
    """Every wrong type and size."""
    assert faults(changed(path, value))


@pytest.mark.parametrize(("path", "value"), BEYOND, ids=lambda v: repr(v)[:40])
def test_what_the_norm_says_of_fields_together_is_beyond_the_schema(path: str, value: Any) -> None:
    """Else it belongs to the list of what a schema refuses."""
    assert not faults(changed(path, value))


@pytest.mark.parametrize("name", SEALED)
def test_every_field_is_required(name: str) -> None:
    """Those of format 1 from its first release on."""
    assert faults({key: value for key, value in SEALED.items() if key != name})


@pytest.mark.parametrize("where", ["", "parent.", "ancestors.0.", "files.0.", "metrics."])
def test_unknown_fields_are_tolerated_at_every_level(where: str) -> None:
    """By the schema as by the reader."""
    assert not faults(SEALED)
    assert not faults(changed(f"{where}later", {"a": [1, None]}))
