"""`imuckpt` on a store that counts what it is asked for, and knows uploads."""

from __future__ import annotations

import json
from collections import Counter

import fsspec.config
import pytest

from conditional_store import Contents
from conftest import small_model
from ray_imuckpt import Checkpointer, Retries
from ray_imuckpt.cli import directories, main, terminal

RUNS = "conditional://bucket/runs"
UPLOAD = "model-00000000000000aa.safetensors"


@pytest.fixture
def contents(monkeypatch: pytest.MonkeyPatch) -> Contents:
    """A store that `imuckpt` finds by its URL: fsspec's own configuration leads to it."""
    made = Contents()
    monkeypatch.setitem(fsspec.config.conf, "conditional", {"contents": made})
    return made


def save(run: str, epochs: range, begin: int | str = "none") -> None:
    """Make checkpoints whose loss is their epoch, after that of epoch `begin`."""
    model = small_model()
    with Checkpointer(f"{RUNS}/{run}", continue_from=begin, blocking=True) as checkpointer:
        checkpointer.start(model)
        for epoch in epochs:
            checkpointer.checkpoint(epoch, model=model, metrics={"loss": float(epoch)})


def test_no_manifest_is_read_twice(contents: Contents, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where a branch was abandoned, and where the best one is looked for."""
    save("a", range(1, 6))
    save("a", range(2, 4), begin=1)
    for words, most in (
        (["ls", f"{RUNS}/a"], {1, 2, 3, 4, 5}),
        (["ls", f"{RUNS}/a", "--metric", "loss", "--mode", "min"], {1, 2, 3, 4, 5}),
        (["ls", RUNS], {3, 4, 5}),
        (["ls", RUNS, "--metric", "loss", "--mode", "min"], {1, 2, 3, 4, 5}),
    ):
        contents.calls.clear()
        assert main(words) == 0
        got = Counter(key for kind, key in contents.calls if kind == "get")
        manifests = {key: count for key, count in got.items() if key.endswith("manifest.json")}
        assert manifests == {
            f"bucket/runs/a/checkpoint={epoch}/manifest.json": 1 for epoch in most
        }, words
    assert "5 checkpoints, 2 of abandoned branches" in capsys.readouterr().out


def test_uploads_that_did_not_end_are_told_and_removed(
    contents: Contents, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of each run below, and of a run of which nothing else is there."""
    save("a", range(1, 2))
    contents.uploads["1"] = (f"bucket/runs/a/checkpoint=2/{UPLOAD}", contents.now)
    contents.uploads["2"] = (f"bucket/runs/killed/checkpoint=1/{UPLOAD}", contents.now)
    contents.uploads["3"] = (f"bucket/runs/other/{UPLOAD}", contents.now)
    assert main(["ls", RUNS, "--json"]) == 0
    told = {row["name"]: row for row in json.loads(capsys.readouterr().out)["runs"]}
    assert {name: (row["uploads"], row["checkpoints"]) for name, row in told.items()} == {
        "a": (1, 1),
        "killed": (1, 0),
    }
    assert told["killed"]["state"] == "no checkpoint"
    assert main(["ls", RUNS]) == 0
    assert "2 uploads begun and not ended" in capsys.readouterr().out.splitlines()[-1]
    assert main(["ls", f"{RUNS}/killed"]) == 0
    assert "1 upload" in capsys.readouterr().out
    contents.now += 2 * 24 * 60 * 60
    assert main(["clean", f"{RUNS}/killed"]) == 0
    assert list(contents.uploads) == ["1", "3"]


def test_a_store_that_is_down_is_not_waited_for_as_a_run_waits(
    contents: Contents, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command has the patience of a person, and tells once that it waits."""
    save("a", range(1, 2))
    monkeypatch.setattr(directories, "PATIENCE", Retries(attempts=3))
    monkeypatch.setattr(terminal, "WAITED", 0.0)
    monkeypatch.setattr(terminal, "SILENCE", float("inf"))

    def down(_kind: str, _key: str) -> None:
        raise ConnectionError("the store is down")

    monkeypatch.setattr(contents, "before", down)
    run = f"{RUNS}/a"
    commands = [["ls", run], ["ls", RUNS], ["clean", run], ["prune", run, "--keep-last", "1"]]
    commands += [[name, run] for name in ("show", "verify", "log", "plot")]
    commands += [["show", run, "1"], ["show", f"{run}/checkpoint=1"], ["diff", run, "1", "1"]]
    for words in commands:
        contents.calls.clear()
        assert main(words) == 2, words
        error = capsys.readouterr().err
        assert max(Counter(contents.calls).values()) == 3, words
        assert error.count("is tried again in") == 1, words
        assert "(3 tries in " in error, words
