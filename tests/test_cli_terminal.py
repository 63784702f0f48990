"""What `imuckpt` shows on a terminal, and gives to a program."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import small_model, train
from ray_imuckpt import Checkpointer
from ray_imuckpt.cli import main, structured
from support.terminals import on_a_terminal


def lines_at(columns: int, *words: str) -> list[str]:
    """The lines that a command shows on a terminal of so many columns."""
    sent = on_a_terminal(columns, "-m", "ray_imuckpt", *words)
    return sent.replace("\r\n", "\n").splitlines()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Epochs 1 and 2, of which 2 is damaged; a short path, since words are not broken."""
    directory = tmp_path_factory.mktemp("run")
    train(directory, 2)
    (directory / "checkpoint=2" / "manifest.json").write_bytes(b"")
    return directory


class Terminal(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, columns: int, *words: str) -> str:
    """What a command shows on a terminal of so many columns; in this process."""
    for name, value in (("COLUMNS", str(columns)), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", terminal)
        assert main([*words]) in (0, 1)
    return terminal.getvalue()


class Narrow(io.StringIO):
    """Standard output that takes ASCII alone."""

    encoding = "ascii"

    def write(self, text: str) -> int:
        text.encode("ascii")
        return super().write(text)


def test_what_a_stream_has_no_bytes_for_is_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of any script are shown in any locale, in a table, a line, CSV and by --help."""
    with Checkpointer(tmp_path / "größe") as checkpointer:
        log, metrics = [{"verlust\udcff": 0.5, "é": 1}], {"λ": 1.0}
        checkpointer.checkpoint(1, model=small_model(), log=log, metrics=metrics)
    run = str(tmp_path / "größe")
    for words, told in (
        (["ls", run], "\\u03bb=1"),
        (["ls", str(tmp_path)], "gr\\xf6\\xdfe"),
        (["show", run], "\\u03bb=1"),
        (["log", run, "--csv"], "\\udcff,\\xe9"),
        (["log", run], "\\udcff"),
        (["prune", run, "--keep-last", "1", "--dry-run"], "stays"),
    ):
        out = Narrow()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", out)
            assert main(words) == 0
        assert told in out.getvalue()


def test_an_interrupt_is_told_in_a_word(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 130, no traceback, and no half file."""

    def interrupted(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    file = directory.parent / "interrupted.safetensors"
    assert main(["export", str(directory), "1", str(file)]) == 130
    assert capsys.readouterr() == ("", "imuckpt: interrupted.\n")
    assert not [*directory.parent.glob("interrupted*")]


def whole(monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """What a program gets."""
    with monkeypatch.context() as patched, contextlib.redirect_stdout(io.StringIO()) as out:
        patched.setenv("COLUMNS", "40")
        assert main([*words]) in (0, 1)
    return out.getvalue()


COLOURS = re.compile(r"\x1b\[[0-9;]*m")
COMMANDS = ["ls RUN", "ls --runs RUN", "show RUN 1 --tensors", "prune RUN --keep-last 1 --dry-run"]


@pytest.mark.parametrize("without", ["", "rich", "colours"])
@pytest.mark.parametrize("columns", [40, 80, 160])
def test_nothing_is_lost_on_a_narrow_terminal_nor_is_a_line_too_long(
    directory: Path, monkeypatch: pytest.MonkeyPatch, columns: int, without: str
) -> None:
    """With rich, without it, and where NO_COLOR is set: the same words as a program gets."""
    monkeypatch.chdir(directory.parent)
    if without == "rich":
        monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setenv("NO_COLOR", "1" if without == "colours" else "")
    coloured = []
    for command in COMMANDS:
        words = command.replace("RUN", directory.name).split()
        text = shown(monkeypatch, columns, *words)
        lines = COLOURS.sub("", text).replace("─", "").splitlines()
        too_long = [line for line in lines if len(line) > columns]
        assert all(len(line.split()) == 1 for line in too_long), "a word stays whole, a path say"
        ages = re.compile(r"\b\d+ (s|min)\b")  # which go on
        expected = ages.sub("?", whole(monkeypatch, *words)).split()
        assert sorted(ages.sub("?", " ".join(lines)).split()) == sorted(expected), command
        coloured.append("\x1b[" in text)
    assert any(coloured) is not bool(without)
    assert without or columns < 160 or all(coloured)


def test_a_real_terminal_of_forty_columns_gets_folded_rows(directory: Path) -> None:
    """What has no room goes on below."""
    lines = lines_at(40, "ls", str(directory))
    assert max(map(len, lines)) <= 40
    assert lines[0].split() == ["epoch", "age", "size", "ranks", "state"]
    assert lines[1].split() == ["metrics"]
    assert lines[2].split()[0] == "1"
    assert lines[3].startswith(" " * 9 + "loss=")
    assert "1 with a damaged manifest" in " ".join(line.strip() for line in lines)


def test_a_chart_is_as_wide_as_there_is_room(directory: Path) -> None:
    """Its axis ends with the line, and nothing is folded."""
    lines = lines_at(40, "plot", str(directory), "-m", "loss")
    lines = lines[lines.index("loss") :]
    assert max(map(len, lines)) == 40
    assert any("*" in line for line in lines)


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


def test_names_of_columns_do_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a log: in its table, in CSV on a terminal, and in a picture."""
    name, run, picture = "a\x1b[2J\n", str(tmp_path / "run"), str(tmp_path / "a.svg")
    with Checkpointer(run) as checkpointer:
        checkpointer.checkpoint(1, model=small_model(), log=[{name: 1.0, "b": 2}])
    assert main(["log", run]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["a\\x1b[2J\\n", "b"]
    assert main(["plot", run, "-o", picture]) == 0
    assert main(["log", run, "--csv"]) == 0
    assert name in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["log", run, "--csv"]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "status", "keys"),
    [
        (["ls"], 0, {"kind", "url", "checkpoints", "leftovers", "best", "in_use", "problem"}),
        (["ls", "--runs"], 0, {"kind", "url", "runs"}),
        (["show", "1"], 0, {"manifest", "parts"}),
        (["verify"], 1, {"checkpoints"}),
        (["diff", "1", "1"], 0, {"first", "second", "tensors", "differences"}),
        (["plot", "-m", "loss"], 1, {"curves", "without", "unread"}),
        (["log", "1"], 0, {"columns", "rows"}),
        (["prune", "--keep-last", "9", "--dry-run"], 0, {"epochs", "size", "spared", "leftovers"}),
        (["clean", "--dry-run"], 0, {"url", "removed", "spared", "dry_run"}),
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


def keys_of(value: Any) -> set[str]:
    """All keys of an object and of what is in it, without those that are the user's own."""
    if isinstance(value, list):
        return set().union(*map(keys_of, value))
    if not isinstance(value, dict):
        return set()
    free = {"metrics", "versions", "values", "objects"}
    inside = [v for key, v in value.items() if key not in free or type(v) is list]
    return set(value).union(*map(keys_of, inside))


@pytest.mark.parametrize(
    ("words", "row"),
    [
        ("ls RUN --metric loss --mode min", "`ls` of a run"),
        ("ls --runs RUN --metric loss --mode min", "`ls` of several runs"),
        ("show RUN 1", "`show`"),
        ("verify RUN", "`verify`"),
        ("prune RUN --keep-last 1 --dry-run", "`prune`"),
        ("clean RUN --dry-run", "`clean`"),
        ("export RUN 1 FILE", "`export`"),
        ("diff RUN 1 RUN 1", "`diff`"),
        ("plot RUN -m loss", "`plot`"),
    ],
)
def test_every_key_for_programs_is_documented(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, row: str
) -> None:
    """In its row of docs/cli.md."""
    run = Path(shutil.copytree(directory, tmp_path / "run"))
    (run / "checkpoint=7").mkdir()
    (run / "checkpoint=7" / "state-00000000000000aa.json").write_bytes(b"1")
    words = words.replace("RUN", str(run)).replace("FILE", str(tmp_path / "file"))
    assert main([*words.split(), "--json"]) in (0, 1)
    page = (Path(__file__).parents[1] / "docs" / "cli.md").read_text()
    documented = next(line for line in page.splitlines() if line.startswith(f"| {row} | `"))
    missing = {
        key for key in keys_of(json.loads(capsys.readouterr().out)) if f"`{key}`" not in documented
    }
    assert missing == set()


def test_show_tells_a_program_of_each_tensor(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its dtype and shape."""
    main(["show", str(directory), "1", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert {"name": "0.weight", "dtype": "float32", "shape": [8, 4]} in told["parts"]["model"]
    whole = told["parts"]["modules"][-1]
    assert (whole["name"], whole["tensors"], whole["dtypes"]) == ("", 9, ["float32", "int64"])
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
