"""What `imuckpt` shows on a terminal, and gives to a program."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import python_path, train
from ray_imuckpt.cli import main, structured


def on_a_terminal(columns: int, *words: str) -> list[str]:
    """The lines that a command shows on a terminal of so many columns."""
    reading, writing = pty.openpty()
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES"}}
    with subprocess.Popen(
        [sys.executable, "-m", "ray_imuckpt", *words],
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=writing,
        env={**environment, "PYTHONPATH": python_path()},
    ):
        os.close(writing)
        shown = b""
        while True:
            try:
                shown += os.read(reading, 65536)
            except OSError:  # Linux says so at the end of a terminal
                break
    os.close(reading)
    return shown.decode().replace("\r\n", "\n").splitlines()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Epochs 1 and 2, of which 2 is damaged; a short path, since words are not broken."""
    directory = tmp_path_factory.mktemp("run")
    train(directory, 2)
    (directory / "checkpoint=2" / "manifest.json").write_bytes(b"")
    return directory


def test_forty_columns_are_enough_for_a_listing(directory: Path) -> None:
    """Nothing is cut off: what has no room goes on below."""
    lines = on_a_terminal(40, "ls", str(directory))
    assert max(map(len, lines)) <= 40
    assert lines[0].split() == ["epoch", "made", "(UTC)", "size"]
    assert lines[1].split() == ["run", "metrics"]
    row = 2
    assert lines[row].startswith("      1  20")
    assert "loss=" in lines[row + 1]
    assert lines[row + 2].startswith("      2  damaged: The record is")
    assert "1 damaged" in " ".join(line.strip() for line in lines[row + 2 :])


def test_bars_are_as_long_as_there_is_room(directory: Path) -> None:
    """The longest one ends with the line."""
    lines = on_a_terminal(40, "plot", str(directory), "loss")
    bars = [line for line in lines if line.endswith("#")]
    assert [len(bar) for bar in bars] == [40]


def test_a_wide_terminal_and_a_program_get_whole_lines(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the environment speaks of columns: a program has none."""
    monkeypatch.setenv("COLUMNS", "40")
    main(["ls", str(directory)])
    assert capsys.readouterr().out.splitlines() == on_a_terminal(200, "ls", str(directory))


def test_warnings_do_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are shown as errors are, and by nobody once the command has ended."""
    monkeypatch.chdir(tmp_path)
    train(Path("\x1b[2J"), 2)
    Path("\x1b[2J/lineage.json").write_bytes(b"")
    assert main(["ls", "\x1b[2J"]) == 0
    error = capsys.readouterr().err
    assert error.startswith("imuckpt: The record is empty")
    assert "\\x1b[2J" in error
    assert "\x1b" not in error


@pytest.mark.parametrize(
    ("words", "status", "keys"),
    [
        (["ls"], 0, {"url", "checkpoints", "leftovers", "problem"}),
        (["show", "1"], 0, {"manifest", "parts"}),
        (["verify"], 1, {"checkpoints"}),
        (["diff", "1", "1"], 0, {"first", "second", "tensors", "differences"}),
        (["plot", "loss"], 1, {"metric", "points", "unread"}),
        (["prune", "--keep-last", "9", "--dry-run"], 0, {"epochs", "leftovers", "dry_run"}),
    ],
)
def test_every_command_that_tells_something_speaks_json(
    directory: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    status: int,
    keys: set[str],
) -> None:
    """One object on standard output, with the same exit status."""
    for more in ([], ["--json"]):
        assert main([words[0], str(directory), *words[1:], *more]) == status
        out = capsys.readouterr().out
    assert keys <= json.loads(out).keys()


def test_show_tells_a_program_of_each_tensor(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its dtype and shape."""
    main(["show", str(directory), "1", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert {"name": "0.weight", "dtype": "float32", "shape": [8, 4]} in told["parts"]["model"]
    assert told["parts"]["optimizer"] == "AdamW"
    assert told["manifest"]["epoch"] == 1


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        (2**60, str(2**60)),
        (10**5000, hex(10**5000)),
        (True, True),
        ({1: (1, None)}, {"1": [1, None]}),
        (torch.tensor(1), "tensor(1)"),
        ("\x1b", "\x1b"),
    ],
    ids=["nan", "inf", "large", "huge", "bool", "nested", "tensor", "escape"],
)
def test_what_json_lacks_is_text(value: Any, told: Any) -> None:
    """Every reader of JSON takes what we print, and it is ASCII."""
    text = structured.dumps({"value": value})
    assert text.isascii()
    assert "\x1b" not in text
    assert json.loads(text, parse_constant=pytest.fail) == {"value": told}
