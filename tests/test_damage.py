"""Damage on disk: what was cut, altered or removed is named, and never restored."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import adamw, same_bytes, small_model, train
from ray_imuckpt import (
    Checkpointer,
    CorruptCheckpointError,
    UnsupportedFormatError,
)
from ray_imuckpt.repository.records import seal


def test_a_size_that_no_file_has_is_corrupt_and_passed_over(trained: Any) -> None:
    """A manifest may claim anything; no memory is taken for it."""
    directory = trained(2)
    file = directory / "checkpoint=2" / "manifest.json"
    manifest = json.loads(file.read_bytes())
    huge = dict(manifest["files"][0], size=10**15, chunk_size=10**15)
    huge["checksums"] = huge["checksums"][:1]
    file.write_bytes(sealed(manifest, files=[huge, *manifest["files"][1:]]))
    assert Checkpointer(directory).start(small_model()).start_epoch == 2


def test_a_pointer_that_is_cut(tmp_path: Path) -> None:
    """It is damage, with the place of the pointer."""
    (tmp_path / "imuckpt-pointer.json").write_text("{")
    with pytest.raises(CorruptCheckpointError, match="pointer"):
        Checkpointer().load(small_model(), tmp_path)


def sealed(manifest: dict[str, Any], **changes: Any) -> bytes:
    """A manifest with fields changed and a checksum that matches."""
    body = {k: v for k, v in {**manifest, **changes}.items() if k != "checksum"}
    return seal({k: v for k, v in body.items() if v is not ...})


def _outside(manifest: dict[str, Any], name: str) -> bytes:
    files = [dict(manifest["files"][0], name=name), *manifest["files"][1:]]
    return sealed(manifest, files=files)


DAMAGE: dict[str, Callable[[Any, bytes], bytes]] = {
    "empty": lambda m, raw: b"",
    "cut": lambda m, raw: raw[: len(raw) // 2],
    "not JSON": lambda m, raw: b"\x00\xff hello",
    "another JSON": lambda m, raw: b"[1, 2]",
    "no format": lambda m, raw: sealed(m, format=...),
    "one digit altered": lambda m, raw: raw.replace(b'"epoch": 3', b'"epoch": 4', 1),
    "checksum gone": lambda m, raw: json.dumps(
        {k: v for k, v in m.items() if k != "checksum"}
    ).encode(),
    "a field gone": lambda m, raw: sealed(m, run_id=...),
    "a field of another type": lambda m, raw: sealed(m, epoch="3"),
    "of another epoch": lambda m, raw: sealed(m, epoch=2),
    "a file above": lambda m, raw: _outside(
        m, "../checkpoint=2/model-0123456789abcdef.safetensors"
    ),
    "an absolute file": lambda m, raw: _outside(m, "/etc/passwd"),
    "a file named twice": lambda m, raw: sealed(m, files=[m["files"][0]] * 2),
    "a negative size": lambda m, raw: sealed(m, files=[dict(m["files"][0], size=-1)]),
    "too few checksums": lambda m, raw: sealed(m, files=[dict(m["files"][0], checksums=[])]),
    "a header larger than its file": lambda m, raw: sealed(
        m, files=[dict(m["files"][0], header_size=10**15)]
    ),
    "a header of another type": lambda m, raw: sealed(
        m, files=[dict(m["files"][0], header_size="8")]
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_manifest(trained: Any, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """By number it is an error that names it; "last" falls back to the newest sound one."""
    directory = trained(3)
    file = directory / "checkpoint=3" / "manifest.json"
    raw = file.read_bytes()
    file.write_bytes(DAMAGE[damage](json.loads(raw), raw))
    checkpointer = Checkpointer(directory)
    with pytest.raises(CorruptCheckpointError, match="checkpoint=3"):
        checkpointer.start(small_model(), continue_from=3)
    with pytest.raises(CorruptCheckpointError, match="checkpoint=3"):
        checkpointer.load(small_model(), 3)
    assert checkpointer.start(small_model()).start_epoch == 3
    assert "checkpoint=3" in caplog.text


def test_a_manifest_of_a_newer_format_is_never_passed_over(trained: Any) -> None:
    """To train on from an older one would lose what is there."""
    directory = trained(3)
    file = directory / "checkpoint=3" / "manifest.json"
    file.write_bytes(sealed(json.loads(file.read_bytes()), format=2))
    for choice in ("last", 3):
        with pytest.raises(UnsupportedFormatError, match="format 2"):
            Checkpointer(directory).start(small_model(), continue_from=choice)


@pytest.mark.parametrize("part", ["model", "model_frozen", "optimizer", "state.json", "state"])
@pytest.mark.parametrize("damage", ["altered", "cut", "longer", "gone"])
def test_damaged_data_files(
    trained: Any, part: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Promise 3: by number an error, for "last" the newest sound one; no object is changed."""
    directory = trained(3)
    stem, _, suffix = part.partition(".")
    file = next((directory / "checkpoint=3").glob(f"{stem}-*.{suffix or 'safetensors'}"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink()  # a frozen file is a link: the other checkpoints must keep theirs
    if damage != "gone":
        new = {"altered": data, "cut": data[:-1], "longer": data + b"x"}[damage]
        file.write_bytes(bytes(new))
    checkpointer = Checkpointer(directory)
    model = small_model(seed=4)
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=9)
    before = copy.deepcopy(
        [dict(model.state_dict()), optimizer.state_dict(), scheduler.state_dict()]
    )
    with pytest.raises(CorruptCheckpointError, match=file.name):
        checkpointer.start(model, optimizer, scheduler=scheduler, continue_from=3)
    after = [dict(model.state_dict()), optimizer.state_dict(), scheduler.state_dict()]
    assert same_bytes(after, before)
    with pytest.raises(CorruptCheckpointError, match=file.name):
        checkpointer.verify(3)
    assert checkpointer.start(model, adamw(model)).start_epoch == 3
    assert file.name in caplog.text


def test_when_every_checkpoint_is_damaged_training_does_not_silently_begin_anew(
    trained: Any,
) -> None:
    """Promise 12: weeks of training are not thrown away unasked."""
    directory = trained(2)
    for file in directory.glob("checkpoint=*/model-*"):
        file.write_bytes(b"")
    with pytest.raises(CorruptCheckpointError, match="Every checkpoint"):
        Checkpointer(directory).start(small_model())


def test_testing_reads_the_models_bytes_only(trained: Any) -> None:
    """Damage elsewhere does not keep a model from being tested."""
    directory = trained(2)
    for file in directory.glob("checkpoint=2/*"):
        if not file.name.startswith(("model", "manifest")):
            file.unlink()
    Checkpointer(directory).load(small_model(), 2)


def test_an_epoch_can_be_saved_over_a_damaged_one(trained: Any) -> None:
    """Damage does not block the epoch for ever."""
    directory = trained(3)
    (directory / "checkpoint=3" / "manifest.json").write_bytes(b"")
    _, _, log, first = train(directory, 4)
    assert first == 3
    assert [entry["epoch"] for entry in log] == [1, 2, 3, 4]
    assert Checkpointer(directory).list_existing_checkpoint_indices() == [1, 2, 3, 4]
    for epoch in (3, 4):
        Checkpointer(directory).verify(epoch)
