"""`imuckpt ls` of directories in which something is wrong: each checkpoint stays a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import train
from ray_imuckpt import Checkpointer
from ray_imuckpt.cli import main
from ray_imuckpt.storage.local import LocalStorage


def listed(
    directory: Path, capsys: pytest.CaptureFixture[str], status: int = 0
) -> dict[int, dict[str, Any]]:
    """What `ls --json` tells, by epoch."""
    assert main(["ls", str(directory), "--json"]) == status
    found = json.loads(capsys.readouterr().out)
    assert found["url"] == str(directory)
    return {row["epoch"]: row for row in found["checkpoints"]}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Epochs 1 to 3."""
    train(tmp_path, 3)
    return tmp_path


def file_of(directory: Path, epoch: int, part: str) -> Path:
    return next((directory / f"checkpoint={epoch}").glob(f"{part}-*"))


def test_sound_checkpoints_have_all_facts(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a program reads them."""
    rows = listed(directory, capsys)
    assert [row["state"] for row in rows.values()] == ["committed"] * 3
    assert [row["branch"] for row in rows.values()] == ["current"] * 3
    assert [row["world_size"] for row in rows.values()] == [1] * 3
    assert all(0 <= row["age"] < 3600 for row in rows.values())
    loaded = Checkpointer(directory).read(2)
    assert rows[2]["metrics"] == loaded.metrics
    assert rows[2]["run_id"] == loaded.manifest.run_id
    assert rows[2]["created"] == loaded.manifest.created
    assert rows[2]["size"] == sum(entry.size for entry in loaded.manifest.files)
    assert rows[2]["problem"] == ""


@pytest.mark.parametrize("forged", [b"", b"{}", b'{"format": 1}', b"\x00" * 100])
def test_a_damaged_manifest_is_a_row(
    directory: Path, capsys: pytest.CaptureFixture[str], forged: bytes
) -> None:
    """It hides no other checkpoint."""
    (directory / "checkpoint=2" / "manifest.json").write_bytes(forged)
    rows = listed(directory, capsys)
    assert [row["state"] for row in rows.values()] == ["committed", "damaged manifest", "committed"]
    assert rows[2]["problem"]
    assert rows[2]["size"] is None
    assert main(["ls", str(directory)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["2", "?", "damaged", "manifest"]
    assert lines[3].strip().startswith("The ")
    assert lines[-1] == "3 checkpoints, 1 with a damaged manifest"


@pytest.mark.parametrize("data", [None, b"", b"short"])
def test_a_missing_or_cut_file_is_seen_without_reading_any(
    directory: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    data: bytes | None,
) -> None:
    """By a listing: no data file is opened."""
    file = file_of(directory, 2, "optimizer")
    file.unlink() if data is None else file.write_bytes(data)

    def refuse(self: LocalStorage, name: str, *_: Any) -> None:
        raise AssertionError(name)

    monkeypatch.setattr(LocalStorage, "read_into", refuse)
    rows = listed(directory, capsys)
    wrong = "missing file" if data is None else "cut file"
    assert [row["state"] for row in rows.values()] == ["committed", wrong, "committed"]
    assert rows[2]["metrics"], "what the manifest says is told all the same"
    assert main(["ls", str(directory)]) == 0
    out = capsys.readouterr().out
    assert ("it is missing" if data is None else f"it has {len(data)} bytes") in out
    assert file.name in out
    assert f"1 with a {wrong}" in out


def test_what_is_of_a_newer_format_is_no_damage(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is another state."""
    file = directory / "checkpoint=2" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_bytes()), "format": 9}))
    assert listed(directory, capsys)[2]["state"] == "newer format"
    assert main(["ls", str(directory)]) == 0
    assert capsys.readouterr().out.endswith("3 checkpoints, 1 with a newer format\n")


def test_a_linked_checkpoint_is_not_called_damaged(
    directory: Path, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Listings show nothing behind a link; what is missing there is found all the same."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "checkpoint=2"
    (directory / "checkpoint=2").rename(elsewhere)
    (directory / "checkpoint=2").symlink_to(elsewhere)
    assert listed(directory, capsys)[2]["state"] == "committed"
    file_of(directory, 2, "model").unlink()
    assert listed(directory, capsys)[2]["state"] == "missing file"


def test_branches_that_cannot_be_told_hide_no_checkpoint(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows are there, their branches unknown, and the status says that it is not all."""
    record = directory / "lineage.json"
    record.write_text('{"format": 9}')
    assert main(["ls", str(directory), "--json"]) == 2
    out, error = capsys.readouterr()
    found = json.loads(out)
    assert [row["branch"] for row in found["checkpoints"]] == [None] * 3
    assert "It has format 9" in found["problem"]
    assert str(record) in error


def test_a_checkpoint_that_is_deleted_meanwhile_is_no_row(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process prunes between the listing and the look."""
    real = LocalStorage.entries

    def entries(self: LocalStorage) -> Any:
        found = real(self)
        (directory / "checkpoint=1" / "manifest.json").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(LocalStorage, "entries", entries)
    assert list(listed(directory, capsys)) == [2, 3]


def test_an_unlistable_directory_is_asked_for_each_file(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the files, when one of the directories in it cannot be looked into."""

    def denied(_: LocalStorage) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(LocalStorage, "entries", denied)
    assert [row["state"] for row in listed(directory, capsys).values()] == ["committed"] * 3


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_manifest_that_cannot_be_read_hides_no_other(
    directory: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    epoch: int,
) -> None:
    """It may be denied, which is no damage; if branches hang on it, the status says so."""
    real = LocalStorage.get

    def get(self: LocalStorage, name: str, *rest: Any) -> bytes:
        if name == f"checkpoint={epoch}/manifest.json":
            raise PermissionError(13, "Permission denied", name)
        return real(self, name, *rest)

    monkeypatch.setattr(LocalStorage, "get", get)
    rows = listed(directory, capsys, status=2 if epoch == 3 else 0)
    assert {e for e, row in rows.items() if row["state"] == "committed"} == {1, 2, 3} - {epoch}
    assert rows[epoch]["state"] == "unreadable"
    assert "Permission denied" in rows[epoch]["problem"]
    main(["ls", str(directory)])
    row = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith(f"    {epoch} ")
    )
    assert row.split() == [str(epoch), "?", "unreadable"]
