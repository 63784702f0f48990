"""The command `imuckpt`, as a person would use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import python_path, small_model, train
from ray_imuckpt import Checkpointer
from ray_imuckpt.cli import main
from ray_imuckpt.repository.records import seal
from ray_imuckpt.storage.local import LocalStorage


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Epochs 1 to 4, of which 4 is of an abandoned branch."""
    train(tmp_path / "run", 4)
    train(tmp_path / "run", 3, continue_from=2)
    return tmp_path / "run"


def test_ls_lists_all_and_marks_abandoned_ones(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By epoch, with their metrics; the last line counts them."""
    assert main(["ls", str(directory)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["1", "2", "3", "4"]
    assert ["abandoned" in line for line in lines[1:5]] == [False, False, False, True]
    assert "loss=" in lines[1]
    assert lines[-1] == "4 checkpoints, 1 of abandoned branches"


def test_ls_goes_on_past_a_damaged_manifest(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what is wrong with it, and lists the others."""
    (directory / "checkpoint=2" / "manifest.json").write_bytes(b"")
    assert main(["ls", str(directory)]) == 0
    assert "empty, cut or not ours" in capsys.readouterr().out


def test_show_tells_what_is_in_it(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What made it, where it came from, and each of its parts."""
    assert main(["show", str(directory), "--tensors"]) == 0
    out = capsys.readouterr().out
    for part in (
        "epoch 3",
        "continued from epoch 2",
        "0.weight",
        "AdamW",
        "scheduler",
        "3 entries",
    ):
        assert part in out


def test_verify_finds_damage(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1, with the file; only the epochs that were asked for are read."""
    assert main(["verify", str(directory)]) == 0
    next((directory / "checkpoint=2").glob("optimizer-*")).write_bytes(b"")
    assert main(["verify", str(directory)]) == 1
    assert main(["verify", str(directory), "1", "3"]) == 0
    out = capsys.readouterr().out
    assert "2  damaged" in out
    assert "optimizer-" in out


def test_a_newer_format_does_not_stop_the_rest(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, and all others are looked at."""
    file = directory / "checkpoint=2" / "manifest.json"
    fields = json.loads(file.read_bytes())
    del fields["checksum"]
    file.write_bytes(seal({**fields, "format": 2}))
    assert main(["verify", str(directory)]) == 2
    out = capsys.readouterr().out.splitlines()
    told = [line.split(":")[0].strip() for line in out if not line.startswith("  What")]
    assert told == ["1  sound", "2  of a newer format", "3  sound", "4  sound"]
    assert main(["ls", str(directory)]) == 0
    assert "It has format 2" in capsys.readouterr().out
    assert main(["plot", str(directory), "-m", "loss", "--json"]) == 2
    drawn, error = capsys.readouterr()
    assert [point["x"] for point in json.loads(drawn)["curves"][0]["points"]] == [1, 2, 3]
    assert "checkpoint=2" in error


def test_prune(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run deletes nothing; without a rule nothing is done."""
    assert main(["prune", str(directory), "--keep-last", "1", "--dry-run"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-1] for line in told[1:5]] == [
        "goes",
        "stays: resumed from",
        "stays: the newest sound one, of the last 1",
        "stays: of an abandoned branch",
    ]
    assert told[-1].startswith("would delete 1 checkpoint of 4, ")
    assert told[-1].endswith(" kB: 1")
    assert main(["prune", str(directory), "--keep-last", "1"]) == 0
    assert Checkpointer(directory).list_existing_checkpoint_indices() == [2, 3, 4]
    assert main(["prune", str(directory)]) == 2
    assert "needs a rule" in capsys.readouterr().err


def test_prune_keeps_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As many as are wanted, one by default; the newest stays anyway."""
    with Checkpointer(tmp_path) as checkpointer:
        for epoch, loss in enumerate([3.0, 1.0, 2.0, 4.0, 5.0], start=1):
            checkpointer.checkpoint(epoch, model=small_model(), metrics={"loss": loss})
    best = ["prune", str(tmp_path), "--keep-best", "loss", "min"]
    assert main([*best, "--best-count", "2", "--dry-run"]) == 0
    assert main([*best, "--dry-run"]) == 0
    assert main(["prune", "--dry-run", "--keep-best", "loss", "max", str(tmp_path)]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("would")]
    assert [line.split(": ")[1] for line in told] == ["1, 4", "1, 3, 4", "1, 2, 3, 4"]


def test_steps_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where they were given."""
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.checkpoint(1, model=small_model(), step=1200, metrics={"loss": 0.5})
    for command in ("ls", "show"):
        assert main([command, str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "  step=1200, loss=0.5\n" in out
    assert f"epoch 1, step 1200, at {tmp_path}" in out


def test_what_is_deleted_meanwhile_is_passed_over(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all are looked at; one that was asked for by its epoch is an error."""
    real = LocalStorage.holding

    def holding(self: LocalStorage, marker: str) -> list[str]:
        names = real(self, marker)
        (directory / "checkpoint=2" / "manifest.json").unlink(missing_ok=True)
        return [*{*names, "checkpoint=2"}]

    monkeypatch.setattr(LocalStorage, "holding", holding)
    assert main(["verify", str(directory)]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert rows == ["1", "3", "4"]
    assert main(["plot", str(directory)]) == 0
    assert "epoch 1" in capsys.readouterr().out
    assert main(["verify", str(directory), "2"]) == 2
    assert "There is no committed checkpoint of this epoch" in capsys.readouterr().err


def test_what_is_not_there_is_an_error_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback."""
    assert main(["show", str(tmp_path), "7"]) == 2
    assert "There are no checkpoints in this directory" in capsys.readouterr().err


_COMMANDS = {
    "show": [],
    "verify": [],
    "prune": ["--keep-last", "1"],
    "clean": [],
    "plot": [],
    "diff": ["1", "2"],
    "export": ["1", "/nowhere/file"],
}


@pytest.mark.parametrize("command", _COMMANDS)
@pytest.mark.parametrize("name", ["", "nowhere", "nor/here"])
def test_without_checkpoints_nothing_was_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, name: str
) -> None:
    """A directory that is missing or empty is never one in which all is well."""
    assert main([command, str(tmp_path / name), *_COMMANDS[command]]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("imuckpt: ")
    assert str(tmp_path / name) in error


def test_ls_tells_an_empty_directory_from_a_missing_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ls` of what is there and empty is well; what is not there cannot be listed."""
    assert main(["ls", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "0 checkpoints\n"
    for name in ("nowhere", "nor/here"):
        assert main(["ls", str(tmp_path / name)]) == 2
        assert str(tmp_path / name) in capsys.readouterr().err


def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback where fsspec lacks the package of a scheme, which no other test imports."""
    monkeypatch.setitem(sys.modules, "smbclient", None)
    assert main(["ls", "smb://host/run"]) == 2
    error = capsys.readouterr().err
    assert 'SMB requires "smbprotocol"' in error
    assert "pip install smbclient" not in error, "it is another package than the module"


def test_the_command_is_a_module_and_ends_quietly_with_its_reader(directory: Path) -> None:
    """``python -m ray_imuckpt ls DIR | head -n 0``: no traceback, also none at exit."""
    reading, writing = os.pipe()
    os.close(reading)  # the reader has gone before the first line
    ended = subprocess.run(
        [sys.executable, "-m", "ray_imuckpt", "ls", str(directory)],
        stdout=writing,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": python_path()},
        check=False,
    )
    os.close(writing)
    assert ended.stderr == b""
    assert ended.returncode == 141
