"""`imuckpt ls` of a directory above runs: a hundred runs at a glance."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from conftest import small_model
from ray_imuckpt import Checkpointer
from ray_imuckpt.cli import main
from ray_imuckpt.cli.tables import Column, Table


def save(directory: str | Path, **losses: float) -> None:
    """Make the checkpoints ``e1``, ``e2`` and so on, each with this loss."""
    with Checkpointer(directory) as checkpointer:
        for epoch, loss in losses.items():
            checkpointer.checkpoint(int(epoch[1:]), model=small_model(), metrics={"loss": loss})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, a trial of Ray Tune, one that has but pointers, one that was killed, and others."""
    tree = tmp_path_factory.mktemp("tree")
    save(tree / "run9", e1=3.0, e2=1.0, e3=2.0)
    save(tree / "run10", e1=4.0)
    save(tree / "exp" / "trial_a", e1=0.5, e2=0.25)
    for trial, leads_to in (("exp/trial_a", "exp/trial_a"), ("exp/trial_b", "run9")):
        pointer = tree / trial / "checkpoint_000001" / "imuckpt-pointer.json"
        pointer.parent.mkdir(parents=True)
        pointer.write_text(json.dumps({"url": str(tree / leads_to / "checkpoint=2")}))
    left = tree / "killed" / "checkpoint=1" / "model-00000000000000aa.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"12345")
    for other in (
        "plots/curve.png",
        "notes.txt",
        "checkpoint_old/weights.pt",
        ".git/checkpoint=1/m",
    ):
        (tree / other).parent.mkdir(parents=True, exist_ok=True)
        (tree / other).write_bytes(b"1")
    return tree


@pytest.fixture
def tree(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "tree"))


def rows(
    capsys: pytest.CaptureFixture[str], *words: str, status: int = 0
) -> dict[str, dict[str, Any]]:
    """What `ls --json` tells of each run."""
    capsys.readouterr()
    assert main(["ls", *words, "--json"]) == status
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "runs"
    return {row["name"]: row for row in told["runs"]}


def test_each_run_at_any_depth_is_a_row(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of a person; what is no run, or hidden, is none."""
    told = rows(capsys, str(made))
    assert list(told) == ["exp/trial_a", "exp/trial_b", "killed", "run9", "run10"]
    run = told["run9"]
    assert (run["checkpoints"], run["last"], run["metrics"]) == (3, 3, {"loss": 2.0})
    assert run["state"] == "committed"
    assert run["url"] == str(made / "run9")
    files = {f.stat().st_ino: f.stat().st_size for f in (made / "run9").rglob("*") if f.is_file()}
    assert run["size"] == sum(files.values()), "the frozen part is one file of three names"
    assert (told["killed"]["state"], told["killed"]["leftovers"]) == ("no checkpoint", 5)
    assert main(["ls", str(made)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1].startswith("5 runs, 6 checkpoints, ")
    assert "5 B of it of saves that did not end" in out[-1]


def test_a_trial_of_tune_is_a_run_and_pointers_are_followed(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where its checkpoints lie elsewhere, it says where."""
    told = rows(capsys, str(made / "exp"))
    assert (told["trial_a"]["checkpoints"], told["trial_a"]["last"]) == (2, 2)
    assert (told["trial_b"]["state"], told["trial_b"]["last"]) == ("elsewhere", 2)
    assert told["trial_b"]["metrics"] == {"loss": 1.0}
    assert told["trial_b"]["problem"] == f"its checkpoints are in {made / 'run9'}"


def test_the_best_of_each_run_and_of_all(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the metric that is asked for; of one run it is marked."""
    told = rows(capsys, str(made), "--metric", "loss", "--mode", "min")
    assert told["run9"]["best"] == {"epoch": 2, "value": 1.0}
    assert told["exp/trial_a"]["best"] == {"epoch": 2, "value": 0.25}
    assert told["killed"]["best"] is None
    assert main(["ls", str(made), "--metric", "loss", "--mode", "min", "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["best"]
    assert best == {"run": "exp/trial_a", "epoch": 2, "value": 0.25}
    assert main(["ls", str(made), "--metric", "loss", "--mode", "max"]) == 0
    assert "best loss: 4, run10 at epoch 1\n" in capsys.readouterr().out
    assert main(["ls", str(made / "run9"), "--metric", "loss", "--mode", "min"]) == 0
    assert "committed, best" in capsys.readouterr().out.splitlines()[2]
    assert main(["ls", str(made), "--metric", "accuracy", "--mode", "max"]) == 0
    assert "best accuracy:" not in capsys.readouterr().out


def test_runs_in_the_order_that_is_asked_for(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best or youngest first; last what has no best or no age."""
    least, most = (["--metric", "loss", "--mode", mode] for mode in ("min", "max"))
    named = ["exp/trial_a", "exp/trial_b", "killed", "run9", "run10"]
    assert list(rows(capsys, str(made), "--sort", "name")) == named
    least_first = list(rows(capsys, str(made), "--sort", "best", *least))
    assert least_first == ["exp/trial_a", "run9", "run10", "exp/trial_b", "killed"]
    most_first = list(rows(capsys, str(made), "--sort", "best", *most))
    assert most_first == ["run10", "run9", "exp/trial_a", "exp/trial_b", "killed"]
    by_age = rows(capsys, str(made), "--sort", "age")
    ages = [row["age"] for row in by_age.values() if row["age"] is not None]
    assert ages == sorted(ages)
    assert list(by_age)[-1] == "killed"
    assert main(["ls", str(made), "--sort", "best"]) == 2
    assert "--sort best needs --metric and --mode" in capsys.readouterr().err
    assert main(["ls", str(made / "run9"), "--sort", "age"]) == 2
    assert "whose checkpoints are told by epoch" in capsys.readouterr().err


def test_what_is_wrong_with_a_run_hides_no_other(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is missing, a manifest that is cut, a record of a newer format."""
    next((tree / "run9" / "checkpoint=3").glob("model-*")).unlink()
    (tree / "run10" / "checkpoint=1" / "manifest.json").write_bytes(b"")
    (tree / "exp" / "trial_a" / "lineage.json").write_text('{"format": 9}')
    told = rows(capsys, str(tree))
    assert told["run9"]["state"] == "missing file"
    assert told["run10"]["state"] == "damaged manifest"
    assert told["exp/trial_a"]["state"] == "unreadable"
    assert "It has format 9" in told["exp/trial_a"]["problem"]
    assert told["exp/trial_b"]["state"] == "elsewhere"
    (tree / "exp" / "trial_b" / "checkpoint_000001" / "imuckpt-pointer.json").write_bytes(b"{")
    assert rows(capsys, str(tree))["exp/trial_b"]["state"] == "unreadable"


def test_a_run_lists_its_checkpoints_unless_runs_are_asked_for(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where runs lie below it; the working directory is meant where none is named."""
    save(tree / "run9" / "finetuned", e1=0.1)
    monkeypatch.chdir(tree / "run9")
    assert main(["ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "run"
    assert list(rows(capsys, "--runs")) == [".", "finetuned"]


def test_other_commands_name_the_runs_below(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who names the directory above sees what may have been meant."""
    assert main(["show", str(made)]) == 2
    assert "exp/trial_a, exp/trial_b, killed, run9, run10" in capsys.readouterr().err
    assert main(["clean", str(made)]) == 2
    assert "Name one of the runs below it" in capsys.readouterr().err


def test_a_directory_that_may_not_be_looked_into_is_a_warning(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are listed."""
    real = os.scandir

    def scandir(path: str) -> Any:
        if str(path).endswith("/exp"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr("os.scandir", scandir)
    assert main(["ls", str(tree)]) == 0
    out, error = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()[1:-1]] == ["killed", "run9", "run10"]
    assert f"{tree}/exp cannot be looked into: Permission denied" in error


@pytest.fixture
def store() -> Iterator[str]:
    """A store in memory, with the runs a and b."""
    url = "memory://cli-runs"
    save(f"{url}/a", e1=1.0, e2=0.5)
    save(f"{url}/deep/er/b", e7=0.25)
    yield url
    for path in [path for path in MemoryFileSystem.store if path.startswith("/cli-runs/")]:
        del MemoryFileSystem.store[path]


def test_a_store_is_listed_and_not_asked_for_each_file(
    store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of checkpoints: manifests are read of the last ones only."""
    opened: list[str] = []
    sized: list[str] = []
    real, real_info = MemoryFileSystem.cat_file, MemoryFileSystem.info

    def cat_file(self: MemoryFileSystem, path: str, *rest: Any, **more: Any) -> bytes:
        opened.append(path)
        return real(self, path, *rest, **more)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)

    def info(self: MemoryFileSystem, path: str, **more: Any) -> Any:
        sized.append(path)
        return real_info(self, path, **more)

    monkeypatch.setattr(MemoryFileSystem, "info", info)
    told = rows(capsys, store)
    assert [(name, row["last"], row["state"]) for name, row in told.items()] == [
        ("a", 2, "committed"),
        ("deep/er/b", 7, "committed"),
    ]
    manifests = [path for path in opened if path.endswith("manifest.json")]
    assert sorted(manifests) == [
        "/cli-runs/a/checkpoint=2/manifest.json",
        "/cli-runs/deep/er/b/checkpoint=7/manifest.json",
    ]
    assert len(opened) == 2, "nothing else"
    assert not [path for path in sized if "checkpoint=" in path]
    assert main(["show", store]) == 2
    assert "deep/er/b" in capsys.readouterr().err


def test_a_url_with_nothing_at_it_is_no_empty_run(
    tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store knows no empty directories: a mistyped name is told, whatever is asked of it."""
    url = f"{store}/typo"
    for words in (
        ["ls", url],
        ["ls", "--runs", url],
        ["show", url],
        ["show", url, "3"],
        ["verify", url],
        ["prune", url, "--keep-last", "1"],
        ["clean", url],
        ["log", url],
        ["plot", url],
        ["diff", url, "1", "2"],
        ["export", url, str(tmp_path / "weights.safetensors")],
    ):
        assert main(words) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert "There is nothing at this URL. [url=memory:///cli-runs/typo]" in error, words
    (tmp_path / "empty").mkdir()
    assert main(["ls", str(tmp_path / "empty")]) == 0
    assert capsys.readouterr().out == "0 checkpoints\n", "a directory of a disk is there"
    assert main(["diff", store, "1", "2"]) == 2
    assert "Name one of the runs below it: a, deep/er/b." in capsys.readouterr().err


def test_signs_that_take_two_columns_keep_tables_straight() -> None:
    """What follows them begins below its title."""
    names = ["ab", "日本語", "e\u0301"]
    table = Table((Column("run"), Column("n", right=True)), tuple((name, "1") for name in names))
    assert [*table.lines()] == ["run     n", "ab      1", "日本語  1", "e\u0301       1"]
