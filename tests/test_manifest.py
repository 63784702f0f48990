"""What a manifest may hold: the right types at every level, and what a later release adds."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from conftest import adamw, small_model
from ray_imuckpt import Checkpointer, CorruptCheckpointError
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.repository.records import seal
from ray_imuckpt.storage import open_storage

SUM = "0123456789abcdef" * 2
FILE = {
    "part": "model",
    "rank": 0,
    "name": "model-0123456789abcdef.safetensors",
    "size": 20,
    "chunk_size": 10,
    "checksums": [SUM, SUM],
    "header_size": 16,
    "header_checksum": SUM,
}
FIELDS: dict[str, Any] = {
    "format": 1,
    "epoch": 3,
    "step": None,
    "run_id": "r2",
    "save_id": "0123456789abcdef",
    "parent": {"epoch": 2, "run_id": "r1", "save_id": "a"},
    "ancestors": [{"run_id": "r1", "epoch": 2}],
    "world_size": 2,
    "created": "2026-01-01T00:00:00+00:00",
    "versions": {"torch": "2.13.0"},
    "metrics": {"loss": 0.25},
    "branch": 1,
    "files": [FILE],
}
RECORD: dict[str, Any] = {
    "format": 1, "branch": 2, "run_id": "r", "since": None, "abandoned": {},
}  # fmt: skip


def with_field(path: str, value: Any) -> bytes:
    """A manifest with a right checksum, one field (``files.0.size``) replaced or added."""
    fields = copy.deepcopy(FIELDS)
    *way, last = path.split(".")
    place: Any = fields
    for step in way:
        place = place[int(step) if isinstance(place, list) else step]
    place[int(last) if isinstance(place, list) else last] = value
    return seal(fields)


WRONG: list[tuple[str, Any]] = [
    ("format", 0), ("format", True), ("format", "1"),
    ("epoch", True), ("epoch", "3"), ("epoch", -3), ("epoch", 10**30), ("epoch", None),
    ("step", True), ("step", 3.5), ("step", "3"), ("step", -1), ("step", 10**30), ("step", [3]),
    ("branch", True), ("branch", "1"), ("branch", -1), ("branch", None),
    ("run_id", 5), ("run_id", "r" * 2000), ("save_id", None), ("save_id", ["a"]),
    ("parent", []), ("parent", {}), ("parent.epoch", "../../etc"), ("parent.epoch", True),
    ("parent.run_id", 5), ("parent.save_id", None), ("parent", "r1"),
    ("ancestors", {}), ("ancestors", [5]), ("ancestors.0.epoch", "2"), ("ancestors.0.epoch", None),
    ("ancestors.0.run_id", [1]), ("ancestors.0", {"run_id": "r1"}),
    ("world_size", True), ("world_size", 0), ("world_size", 10**30), ("world_size", 1.5),
    ("created", 2026), ("created", "z" * 5000),
    ("versions", []), ("versions.torch", [2, 13]), ("versions.torch", None),
    ("metrics", []), ("metrics", None),
    ("files", {}), ("files", None), ("files.0", "model"),
    ("files.0.part", None), ("files.0.part", 5),
    ("files.0.rank", None), ("files.0.rank", True), ("files.0.rank", "0"), ("files.0.rank", 0.5),
    ("files.0.rank", -1), ("files.0.rank", 2**31),
    ("files.0.name", 5), ("files.0.name", "../model-0123456789abcdef.json"),
    ("files.0.name", "/etc/passwd"), ("files.0.name", "model-0123456789abcdef-00.safetensors"),
    ("files.0.name", "model-0123456789abcdef-.safetensors"),
    ("files.0.size", "20"), ("files.0.size", True), ("files.0.size", -1),
    ("files.0.size", 2**63), ("files.0.chunk_size", 0), ("files.0.chunk_size", 2**40),
    ("files.0.checksums", SUM * 2), ("files.0.checksums", [None, None]),
    ("files.0.checksums", [SUM, "short"]), ("files.0.checksums", [SUM, "0" * 31 + "A"]),
    ("files.0.checksums", [SUM, "0" * 33]),
    ("files.0.header_size", -1), ("files.0.header_size", None),
    ("files.0.header_checksum", 5), ("files.0.header_checksum", "0" * 31),
]  # fmt: skip
BEYOND: list[tuple[str, Any]] = [
    ("epoch", 3.0), ("step", 3.0), ("files.0.size", 20.0), ("files.0.chunk_size", 1.0),
    ("files", [FILE, FILE]),
    ("files", [FILE, {**FILE, "name": "model-0123456789abcdef-0.safetensors"}]),
    ("files.0.part", "optimizer"), ("files.0.rank", 2),
    ("files.0.name", "model-0123456789abcdef.safetensors\n"),
    ("files.0.name", "model-fedcba9876543210.safetensors"),
    ("files.0.name", "optimizer-0123456789abcdef.safetensors"),
    ("files.0.name", "model-0123456789abcdef.json"),
    ("files.0.name", "model-0123456789abcdef-1.safetensors"),
    ("files.0.size", 30), ("files.0.checksums", [SUM]), ("files.0.checksums", [SUM, SUM + "\n"]),
    ("files.0.header_size", 0), ("files.0.header_size", 21), ("files.0.header_checksum", ""),
]  # fmt: skip
"""What no schema can refuse: what fields say of each other, 3.0 for 3, and a `$` of Python's."""


@pytest.mark.parametrize(("path", "value"), WRONG + BEYOND, ids=lambda v: repr(v)[:40])
def test_a_wrong_type_or_size_at_any_level_is_damage(path: str, value: Any) -> None:
    """Though the checksum is right: it is no signature."""
    with pytest.raises(CorruptCheckpointError, match="checkpoint=3"):
        Manifest.from_bytes(with_field(path, value), "checkpoint=3", 3)


@pytest.mark.parametrize("path", sorted(FIELDS.keys() - {"format"}))
def test_a_missing_field_is_damage(path: str) -> None:
    """None has a value that it is taken to have."""
    fields = {name: value for name, value in FIELDS.items() if name != path}
    with pytest.raises(CorruptCheckpointError, match=path):
        Manifest.from_bytes(seal(fields), "checkpoint=3", 3)


@pytest.mark.parametrize(
    "where", ["", "parent.", "ancestors.0.", "files.0.", "versions.", "metrics."]
)
def test_an_unknown_field_is_passed_over_at_every_level(where: str) -> None:
    """A later release of the same format may add some."""
    value = "2" if where == "versions." else {"a": [1, None]}
    read = Manifest.from_bytes(with_field(f"{where}later", value), "", 3)
    assert read.parent is not None
    assert (read.epoch, read.parent.epoch, read.ancestors[0].epoch) == (3, 2, 2)
    assert read.files[0].checksums == (SUM, SUM)


@pytest.mark.parametrize(
    "loss", ["NaN", "-Infinity", "1e999", "9" * 5000, '1, "loss": 2', "[" * 900 + "]" * 900,
             "[" * 100_000 + "]" * 100_000, '{"a":[' * 100 + "1" + "]}" * 100]
)  # fmt: skip
def test_a_text_that_is_no_json_or_says_two_things_is_damage(loss: str) -> None:
    """Also where the parser of the language would take it."""
    text = seal(FIELDS).decode().replace("0.25", loss).encode()
    with pytest.raises(CorruptCheckpointError):
        Manifest.from_bytes(text, "", 3)


@pytest.mark.parametrize("filler", ["[],", '{"a":0},', "777,", '"ab",'])
def test_a_record_that_is_larger_than_any_is_not_taken_apart(filler: str) -> None:
    """A few bytes each would become hundreds."""
    text = seal(FIELDS).decode().replace("0.25", f"[{filler * 2_000_001}0]").encode()
    with pytest.raises(CorruptCheckpointError, match="more values than any"):
        Manifest.from_bytes(text, "", 3)


@pytest.mark.parametrize(
    "text",
    [seal(RECORD).replace(b"null", b"NaN"),
     seal({**RECORD, "abandoned": {"2": {"save_id": [1], "run_id": None}}}),
     seal({**RECORD, "abandoned": {"2": {"save_id": "a"}}}),
     seal({**RECORD, "abandoned": {"-2": {"save_id": "a", "run_id": "r"}}}),
     seal({**RECORD, "abandoned": {"1_0": {"save_id": "a", "run_id": "r"}}}),
     seal({**RECORD, "abandoned": {"9" * 5000: {"save_id": "a", "run_id": "r"}}}),
     seal({**RECORD, "abandoned": []}),
     seal({**RECORD, "branch": None}), seal({**RECORD, "run_id": 5}),
     seal({**RECORD, "since": {"epoch": 1}}), seal({**RECORD, "since": 1}),
     *(seal({k: v for k, v in RECORD.items() if k != name}) for name in sorted(RECORD)[:2])],
)  # fmt: skip
def test_a_wrong_type_in_the_record_of_lineage_is_damage(tmp_path: Path, text: bytes) -> None:
    """It is made again from the manifests, with a warning, as one that was cut."""
    (tmp_path / "lineage.json").write_bytes(text)
    catalog = Catalog(open_storage(str(tmp_path)))
    with pytest.raises(CorruptCheckpointError, match="lineage.json"):
        catalog.recorded(text)
    assert catalog.lineage().abandoned == {}


def test_an_unknown_field_in_the_record_of_lineage_is_passed_over(tmp_path: Path) -> None:
    """At each of its levels."""
    who = {"save_id": "a", "run_id": None, "later": 1}
    since = {"epoch": 1, "branch": 0, "later": None}
    record = {**RECORD, "since": since, "abandoned": {"2": who}, "later": {}}
    (tmp_path / "lineage.json").write_bytes(seal(record))
    assert Catalog(open_storage(str(tmp_path))).lineage().abandoned[2].save_id == "a"


def test_last_passes_over_a_manifest_that_is_no_json(trained: Any) -> None:
    """A number that is not finite does not stand in the way of an older checkpoint."""
    directory = trained(2)
    path = Path(directory) / "checkpoint=2" / "manifest.json"
    fields = json.loads(path.read_bytes())
    path.write_text(json.dumps({**fields, "metrics": {"loss": float("nan")}}))
    model = small_model()
    assert Checkpointer(directory).start(model, adamw(model)).start_epoch == 2


def test_metrics_that_no_reader_would_take_are_refused(tmp_path: Path) -> None:
    """At the call, where it can be mended, not at the commit."""
    deep: Any = 1.0
    for _ in range(20):
        deep = {"a": deep}
    with pytest.raises(ValueError, match="nested"):
        Checkpointer(tmp_path).checkpoint(1, model=small_model(), metrics=deep)
    most: Any = 1.0
    for _ in range(16):
        most = {1: most}
    Checkpointer(tmp_path, blocking=True).checkpoint(1, model=small_model(), metrics={"a": most[1]})
    assert Checkpointer(tmp_path).read(1).metrics == {"a": most[1]}
