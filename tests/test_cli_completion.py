"""Completion of the words of `imuckpt`, as a shell asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import python_path, small_model
from ray_imuckpt import Checkpointer
from ray_imuckpt.cli import completion, main, parser
from ray_imuckpt.cli.naming import Rule, names
from support.programs import HANGS

argcomplete = pytest.importorskip("argcomplete")

HEAVY = {"torch", "numpy", "fsspec", "pyarrow", "ray", "rich"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the epochs 5, 9 and 10."""
    directory = tmp_path_factory.mktemp("runs")
    with Checkpointer(directory / "a") as checkpointer:
        for epoch in (5, 9, 10):
            checkpointer.checkpoint(epoch, model=small_model(), metrics={"loss": 1.0, "f1": 0.5})
    return directory


def completed(line: str, cwd: Path) -> tuple[set[str], set[str]]:
    """What may come at the end of a line, and the modules that were imported for it.

    The shell's script gets the answer by a file, whose name it tells.
    """
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*{n.split('.')[0] for n in sys.modules}))\n"
        "from ray_imuckpt.cli import main\n"
        "import os; os._exit = sys.exit\n"
        "sys.exit(main())\n"
    )
    answer = cwd / "answer"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("COMP_")},
            "PYTHONPATH": python_path(),
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_IFS": "\n",
            "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
            "_ARGCOMPLETE_SHELL": "bash",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
        },
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=HANGS,
    )
    assert ended.returncode == 0
    found = {word.strip() for word in answer.read_text().split("\n") if word.strip()}
    return found, set(ended.stdout.split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("imuckpt cle", {"clean"}),
        ("imuckpt verify a 5 ", {"5", "9", "10", "last", "best", "a/"}),
        ("imuckpt show a best --metric ", {"loss", "f1"}),
        ("imuckpt plot a -m loss,f", {"loss,f1"}),
    ],
)
def test_a_shell_is_told_what_may_come(runs: Path, line: str, expected: set[str]) -> None:
    """Commands, epochs, metrics; for none of them is torch imported, nor anything as heavy."""
    found, modules = completed(line, runs)
    assert {word for word in found if not word.startswith("-")} == expected
    assert HEAVY.isdisjoint(modules)
    assert "argcomplete" in modules


def complete(words: str, prefix: str = "") -> list[str]:
    """What is told for the word that follows others."""
    options = parser.parser(plain=True).parse_args(words.split())
    return completion.checkpoints(prefix, options)


def test_epochs_are_those_of_the_run_that_was_named_last(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the working directory where none was; with directories that begin so."""
    monkeypatch.chdir(runs)
    assert complete("show a", "1") == ["10"]
    assert complete("show a", "b") == ["best"]
    assert complete("show", "a") == ["a/"]
    assert complete("diff a/checkpoint=5", "9") == ["9"]
    monkeypatch.chdir(runs / "a")
    assert complete("show") == [
        *("5", "9", "10", "last", "best"),
        *("checkpoint=10/", "checkpoint=5/", "checkpoint=9/"),
    ]


@pytest.mark.parametrize("words", ["show s3://bucket/run", "show nowhere", "show", "show min:"])
def test_no_store_is_asked_and_no_error_shown(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A press of the tabulator waits for no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ray_imuckpt.storage.opening.open_url", pytest.fail, raising=False)
    assert complete(words) == []
    options = parser.parser(plain=True).parse_args(words.split())
    assert completion.metrics(options) == []


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_each_shell_has_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is printed; bash takes it."""
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "imuckpt" in script
    assert "_ARGCOMPLETE" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_without_argcomplete_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2; and a shell that asks gets no answer and no traceback."""
    for module in ("argcomplete", "argcomplete.shell_integration"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'ray-imuckpt[terminal]'" in capsys.readouterr().err
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    with pytest.raises(SystemExit, match="^1$"):
        main([])
    assert capsys.readouterr() == ("", "")


def test_a_name_of_best_needs_no_metric_to_be_completed() -> None:
    """It may follow; when the command runs it has to be there."""
    assert names(["a", "best"], Rule("loss", "min"))
    with pytest.raises(ValueError, match="by which metric"):
        names(["a", "best"])
