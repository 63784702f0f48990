"""How the words of `imuckpt` name checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from conftest import small_model
from ray_imuckpt import Checkpointer
from ray_imuckpt.cli import main, naming
from ray_imuckpt.cli.naming import Choice, Name, Rule

LOSSES = {1: 3.0, 2: 1.0, 3: 2.0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs ``a``, of epochs 1 to 3, and ``b``, of epoch 7; Ray Tune's pointer to a's second."""
    directory = tmp_path_factory.mktemp("runs")
    with Checkpointer(directory / "a") as checkpointer:
        for epoch, loss in LOSSES.items():
            metrics = {"loss": loss, "val/acc": epoch}
            checkpointer.checkpoint(epoch, model=small_model(epoch), metrics=metrics)
    with Checkpointer(directory / "b") as checkpointer:
        checkpointer.checkpoint(7, model=small_model(7))
    pointer = directory / "a" / "checkpoint_000001"
    pointer.mkdir()
    url = str(directory / "a" / "checkpoint=2")
    (pointer / "imuckpt-pointer.json").write_text(json.dumps({"url": url}))
    return directory


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("", [Name(".")]),
        ("runs/a", [Name("runs/a")]),
        ("runs/a last", [Name("runs/a", Choice())]),
        ("last", [Name(".", Choice())]),
        ("40", [Name(".", Choice(epoch=40))]),
        ("./40", [Name("./40")]),
        ("runs/a 40 7", [Name("runs/a", Choice(epoch=40)), Name("runs/a", Choice(epoch=7))]),
        ("runs/a best", [Name("runs/a", Choice(best=Rule("f1", "max")))]),
        ("runs/a min:val/loss", [Name("runs/a", Choice(best=Rule("val/loss", "min")))]),
        ("max://host/run 1", [Name("max://host/run", Choice(epoch=1))]),
        ("checkpoint=4", [Name("checkpoint=4")]),
        ("a checkpoint=4", [Name("a", Choice(child="checkpoint=4"))]),
        ("a checkpoint_000004", [Name("a", Choice(child="checkpoint_000004"))]),
        ("checkpoint=4 5", [Name("checkpoint=4"), Name(".", Choice(epoch=5))]),
        ("/checkpoint=4 5", [Name("/checkpoint=4"), Name("/", Choice(epoch=5))]),
        ("s3://b/r/checkpoint=4/ 5", [Name("s3://b/r/checkpoint=4/"), Name("s3://b/r", Choice(5))]),
        ("a b", [Name("a"), Name("b")]),
        ("a 1 b", [Name("a", Choice(epoch=1)), Name("b")]),
        ("a b 1", [Name("a"), Name("b", Choice(epoch=1))]),
        ("a b/checkpoint=1", [Name("a"), Name("b/checkpoint=1")]),
    ],
)
def test_words_name_places_and_what_is_chosen_of_them(words: str, named: list[Name]) -> None:
    """Without a look at any place."""
    best = Rule("f1", "max") if "best" in words else None
    assert naming.names(words.split(), best) == named


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("show a 1 2", "one checkpoint is wanted, and a 1 2 names 2"),
        (
            "show a lats",
            "named by its own path or URL; or behind that of its run by an epoch, last",
        ),
        ("diff a", "2 checkpoints are wanted, and a names 1"),
        ("show a best", "The best by which metric? Give --metric METRIC --mode min or max"),
        ("show a best --metric loss", "--metric and --mode go together"),
        ("show a last --metric loss --mode min", "say which checkpoint is `best`"),
        ("show a min:", "min: names no metric"),
        ("verify a -- -3", "-3 is no epoch"),
        ("ls a/checkpoint=3", "the run directory is wanted"),
    ],
)
def test_words_that_name_nothing_are_refused(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With status 2, in one sentence, before any directory is looked at."""
    assert main(words.split()) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert told in error


@pytest.mark.parametrize(
    ("words", "epoch"),
    [
        ("{runs}/a", 3),
        ("{runs}/a last", 3),
        ("{runs}/a 1", 1),
        ("{runs}/a best --metric loss --mode min", 2),
        ("{runs}/a max:loss", 1),
        ("{runs}/a min:val/acc", 1),
        ("{runs}/a/checkpoint=2", 2),
        ("file://{runs}/a/checkpoint=2/", 2),
        ("{runs}/a checkpoint=2", 2),
        ("{runs}/a/checkpoint_000001", 2),
        ("{runs}/a checkpoint_000001", 2),
        ("{runs}/copy", 2),
        ("{runs}/pointing", 2),
    ],
)
def test_every_name_of_a_checkpoint_leads_to_it(
    runs: Path, words: str, epoch: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also a copy of its directory, or of a pointer, under any other name."""
    shutil.copytree(runs / "a" / "checkpoint=2", runs / "copy", dirs_exist_ok=True)
    shutil.copytree(runs / "a" / "checkpoint_000001", runs / "pointing", dirs_exist_ok=True)
    named = words.format(runs=runs).split()
    assert main(["show", *named, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["epoch"] == epoch
    assert main(["verify", *named]) == 0


@pytest.mark.parametrize(
    ("words", "epochs"),
    [
        ("a 1 3", [1, 3]),
        ("a/checkpoint=1 3", [1, 3]),
        ("a min:loss last", [2, 3]),
        ("a b", [3, 7]),
        ("a 1 b", [1, 7]),
        ("b a 1", [7, 1]),
        ("a/checkpoint_000001 b/checkpoint=7", [2, 7]),
    ],
)
def test_two_checkpoints_are_compared_of_one_run_or_of_two(
    runs: Path,
    words: str,
    epochs: list[int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the directories of both, where it takes these to know which they are."""
    monkeypatch.chdir(runs)
    assert main(["diff", *words.split(), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [told["first"]["epoch"], told["second"]["epoch"]] == epochs
    assert main(["diff", *words.split()]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    one_run = "b" not in words
    assert last.endswith(f"between {epochs[0]} and {epochs[1]}") is one_run
    assert (f"{runs}/b/checkpoint=7" in last) is not one_run


def test_several_runs_are_verified_at_once(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Then each is told by its directory: an epoch would not say of which run it is."""
    assert main(["verify", str(runs / "a"), "2", str(runs / "b")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{runs}/a/checkpoint=2  sound",
        f"{runs}/b/checkpoint=7  sound",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("{runs}/a 9", "Choose one of [1, 2, 3]"),
        ("{runs}/a/checkpoint=9", "Beside it there are the epochs 1, 2, 3"),
        ("{runs}/a min:los", "There are: loss, val/acc"),
        ("{runs}/b max:loss", "There are no metrics that are numbers. Name another checkpoint"),
        ("{runs}/c", "There is no such directory"),
        ("{runs}/c last", "There is no such directory"),
        ("{runs}/a checkpoint_000009", "holds no manifest"),
        ("{runs}/a/checkpoint_000009", "holds no manifest"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(
    runs: Path, words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2, by `verify` too: nothing was found sound."""
    for command in ("show", "verify"):
        assert main([command, *words.format(runs=runs).split()]) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert told in error
        assert str(runs) in error


def test_words_and_options_stand_in_any_order(
    runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """An option between two words tears nothing apart."""
    run, file = str(runs / "a"), str(tmp_path / "file")
    assert main(["export", run, "--max-shard-size", "5GB", "min:loss", file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == file
    assert main(["verify", "--json", run, "1", "--metric", "loss", "best", "--mode", "max"]) == 0
    assert [c["epoch"] for c in json.loads(capsys.readouterr().out)["checkpoints"]] == [1, 1]
