"""The words on the command line of `imuckpt`: wrong ones, help, and what is imported for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ray_imuckpt
from conftest import python_path, small_model
from ray_imuckpt import Checkpointer
from ray_imuckpt.cli import commands, main, overviews

HEAVY = {"torch", "numpy", "msgspec", "xxhash", "fsspec", "pyarrow", "ray"}
_CODE = (
    "import sys\nfrom ray_imuckpt.cli import main\n"
    "try: status = main(sys.argv[1:])\nexcept SystemExit as end: status = end.code\n"
    "print(status, *{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
)
WORDS = [
    ["--help"],
    ["--version"],
    ["ls", "--help"],
    ["diff", "--help"],
    [],
    ["nonsense"],
    ["show", "run", "seven"],
    ["prune", "run"],
    ["prune", "run", "--keep-last", "0"],
    ["prune", "run", "--keep-best", "loss", "least"],
]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_no_word_that_runs_no_command_costs_an_import(words: list[str]) -> None:
    """Help and wrong arguments are answered without torch."""
    ended = subprocess.run(
        [sys.executable, "-c", _CODE, *words],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": python_path()},
    )
    status, *modules = ended.stderr.splitlines()[-1].split()
    assert status == ("0" if {"--help", "--version"} & {*words} else "2")
    assert HEAVY.isdisjoint(modules)
    assert "argparse" in modules


@pytest.mark.parametrize(
    "words", [["ls"], ["ls", "--runs"], ["prune", "--keep-last", "1"], ["clean"]]
)
def test_looking_at_directories_costs_no_import_of_torch(words: list[str], tmp_path: Path) -> None:
    """Whoever looks after a hundred runs does not wait for it with each command."""
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.checkpoint(1, model=small_model(), metrics={"loss": 0.5, "step": 3})
    ended = subprocess.run(
        [sys.executable, "-c", _CODE, *words, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": python_path()},
    )
    status, *modules = ended.stderr.splitlines()[-1].split()
    assert status == "0", ended.stderr
    assert {"torch", "numpy", "fsspec", "ray"}.isdisjoint(modules)


def test_help_lists_each_command_and_each_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    """What a script may rely on is said where it is looked for."""
    with pytest.raises(SystemExit, match="^0$"):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(f"\n    {name}" in out for name in {**commands.COMMANDS, **overviews.COMMANDS})
    told = out.split("exit status:")[1].split("\n\n")[0]
    assert [line.split()[0] for line in told.strip().splitlines()] == ["0", "1", "2", "130", "141"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ls", "run", "--metric", "loss"], "--metric and --mode go together"),
        (["prune", "run"], "needs a rule: --keep-last, --keep-every or --keep-best"),
        (["prune", "run", "--keep-best", "loss", "least"], "the second word is min or max"),
        (["prune", "run", "--keep-last", "1", "--best-count", "2"], "goes with --keep-best"),
    ],
)
def test_rules_that_are_none_are_refused_in_words(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the words of the command line, not in those of Python."""
    assert main(words) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "some"])
def test_a_rule_that_keeps_nothing_is_refused(
    number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With status 2, before any directory is looked at."""
    with pytest.raises(SystemExit, match="^2$"):
        main(["prune", "nowhere", "--keep-last", number])
    assert f"argument --keep-last: {number!r}"[:22] in capsys.readouterr().err


def test_every_public_name_is_there_though_it_is_imported_late() -> None:
    """Also by ``dir``, by ``*``, and with the modules that are public themselves."""
    names: dict[str, object] = {}
    exec("from ray_imuckpt import *", names)
    assert set(ray_imuckpt.__all__) <= names.keys()
    assert set(ray_imuckpt.__all__) <= set(dir(ray_imuckpt))
    assert ray_imuckpt.schedules.PlateauDetector is ray_imuckpt.PlateauDetector
    assert ray_imuckpt.errors.ImuckptError is ray_imuckpt.ImuckptError
    with pytest.raises(AttributeError, match="no attribute 'Checkpoint'"):
        _ = getattr(ray_imuckpt, "Checkpoint")  # noqa: B009 - a type checker refuses it too
