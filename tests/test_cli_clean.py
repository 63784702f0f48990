"""`imuckpt clean`, and what `ls` shows of saves that did not end."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import python_path, train
from ray_imuckpt.cli import main
from ray_imuckpt.storage import in_use, open_storage
from ray_imuckpt.storage.local import LocalStorage

DAY = 24 * 60 * 60
FILES = [
    "checkpoint=2/model-00000000000000aa.safetensors",
    "checkpoint=2/state-00000000000000aa-1.json",
    "checkpoint=9/state-00000000000000bb.json",
    ".lineage.json.0123abcd.tmp",
]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("clean")
    train(directory, 2)
    return directory


@pytest.fixture
def directory(template: Path, tmp_path: Path) -> Path:
    """Two checkpoints, and what two saves and a write of the record have left right now."""
    shutil.copytree(template, tmp_path / "run")
    for name in FILES:
        path = tmp_path / "run" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"12345")
    return tmp_path / "run"


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the disk's clock, and this machine's, be later than when all was written."""
    real, now = LocalStorage.clock, time.time
    monkeypatch.setattr(LocalStorage, "clock", lambda self: real(self) + seconds)
    for module in ("repository.leftovers", "cli.listing"):
        monkeypatch.setattr(f"ray_imuckpt.{module}.time.time", lambda: now() + seconds)


def names(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


def cleaned(capsys: pytest.CaptureFixture[str], directory: Path, *words: str) -> dict[str, Any]:
    """What `clean --json` tells."""
    assert main(["clean", str(directory), *words, "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_what_is_a_day_old_goes_and_nothing_else(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once more there is nothing to do."""
    before = names(directory)
    assert main(["clean", str(directory)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing to remove"
    told = cleaned(capsys, directory)
    assert told["removed"] == []
    assert {spared["reason"] for spared in told["spared"]} == {"younger than is asked for"}
    later(monkeypatch, DAY + 60)
    assert len(cleaned(capsys, directory, "--dry-run")["removed"]) == 3
    assert names(directory) == before
    assert main(["clean", str(directory)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "removed 20 B of 3 saves"
    assert names(directory) == before - set(FILES)
    assert not (directory / "checkpoint=9").exists()
    assert cleaned(capsys, directory) == {
        "url": str(directory),
        "removed": [],
        "spared": [],
        "dry_run": False,
    }
    assert main(["clean", str(directory)]) == 0
    assert capsys.readouterr().out == "nothing to remove: no save has left anything here\n"


def test_a_save_of_which_something_is_young_stays_whole(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow save's first files may be days old while it writes its last."""
    later(monkeypatch, DAY + 60)
    real = LocalStorage.entries

    def entries(self: LocalStorage, levels: int = 2) -> Any:
        return [
            dataclasses.replace(e, modified=(e.modified or 0) + DAY) if e.name == FILES[1] else e
            for e in real(self, levels)
        ]

    monkeypatch.setattr(LocalStorage, "entries", entries)
    assert [row["save_id"] for row in cleaned(capsys, directory)["removed"]] == [
        None,
        "00000000000000bb",
    ]
    assert {FILES[0], FILES[1]} < names(directory)


def test_an_age_of_ones_own_spares_what_a_run_may_be_writing(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While a process of this machine trains there, nothing goes that is less than a day old."""
    code = (
        "import sys\nfrom ray_imuckpt.storage import open_storage\n"
        'claim = open_storage(sys.argv[1]).claim(b\'{"pid": 17, "host": "h", "since": "s"}\')\n'
        "print(claim.held, flush=True)\nsys.stdin.read()\n"
    )
    before = names(directory)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": python_path()},
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        told = cleaned(capsys, directory, "--older-than", "0s")
        assert told["removed"] == []
        assert {spared["reason"] for spared in told["spared"]} == {
            "less than a day old, and a process trains here"
        }
        assert main(["ls", str(directory)]) == 0
        assert "a run trains here: process 17 on h, since s\n" in capsys.readouterr().out
        other.kill()
    assert names(directory) == before
    assert in_use(open_storage(str(directory))) is None
    assert len(cleaned(capsys, directory, "--older-than", "0s")["removed"]) == 3
    assert names(directory) == before - set(FILES)


def test_ls_shows_what_saves_have_left(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row for each save, with its size; less than a day old, it may be in flight."""
    (directory / FILES[3]).unlink()
    assert main(["ls", str(directory), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["leftovers"]
    assert [(row["epoch"], row["save_id"], row["files"], row["size"]) for row in told] == [
        (2, "00000000000000aa", 2, 10),
        (9, "00000000000000bb", 1, 5),
    ]
    assert {row["state"] for row in told} == {"unfinished"}
    assert main(["ls", str(directory)]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "2 checkpoints",
        "2 unfinished saves, less than a day old: failed, or in flight",
    ]
    later(monkeypatch, 2 * DAY)
    assert main(["ls", str(directory)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["2", "2", "d", "10", "B", "leftover", "2", "files"]
    assert lines[-1] == "15 B left by saves that did not end: imuckpt clean removes them"


@pytest.mark.parametrize("words", [["--older-than", "soon"], ["--older-than", "-1d"]])
def test_an_age_that_is_none_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is looked at."""
    with pytest.raises(SystemExit, match="^2$"):
        main(["clean", str(tmp_path), *words])
    assert "--older-than" in capsys.readouterr().err
