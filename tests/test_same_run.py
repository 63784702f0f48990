"""Promise 5: a run that was killed any number of times is the run that was not, byte for byte."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from ray_imuckpt import Checkpointer
from support.programs import run_program

EPOCHS = 5
STEPS = 8  # of an epoch of one rank


def run(
    directory: Path, ranks: int, last: int = EPOCHS, kills: list[Any] | None = None, **more: str
) -> list[dict[str, Any]]:
    """Run to the end, through all kills; what each rank told."""
    directory.mkdir(exist_ok=True)
    program = "support.runs.same_run"
    ended = run_program(program, directory, last, ranks, json.dumps(kills or []), environment=more)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return told_by(directory, ranks)


def comparable(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in one.items() if k not in ("start_epoch", "warnings")} for one in told]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs that were never interrupted, by the size of their gang."""
    base = tmp_path_factory.mktemp("finished")
    for ranks in (1, 2, 4):
        run(base / str(ranks), ranks)
    return {ranks: base / str(ranks) for ranks in (1, 2, 4)}


def told_by(directory: Path, ranks: int) -> list[dict[str, Any]]:
    return [
        json.loads((directory / f"told-{ranks}-{rank}.json").read_text()) for rank in range(ranks)
    ]


def moments(ranks: int, seed: int) -> list[Any]:
    """Where each attempt dies: a place, a rank, and a call of that place; drawn, but repeatable."""
    draw = random.Random(seed)
    steps = STEPS // ranks
    return [  # two copies, five writes and one commit are one save
        ["loop", draw.randrange(ranks), draw.randrange(steps + 1, 2 * steps + 1)],
        ["snapshot", 0, 3],
        ["write", 0, draw.randrange(6, 9)],
        ["commit", 0, 1],
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "kind"), [(1, "eager"), (2, "overlap")])
def test_killed_in_the_loop_the_snapshot_the_write_and_the_commit(
    tmp_path: Path, finished: dict[int, Path], ranks: int, kind: str
) -> None:
    """Resumed after each kill, the run ends with the bytes of one that was never killed."""
    told = run(tmp_path / "run", ranks, kills=moments(ranks, seed=ranks), SNAPSHOT=kind)
    assert told[0]["start_epoch"] > 1
    assert comparable(told) == comparable(told_by(finished[ranks], ranks))


@pytest.mark.slow
def test_a_gang_of_four_that_loses_a_rank(tmp_path: Path, finished: dict[int, Path]) -> None:
    """Wherever one dies, the next attempt of all four ends as if none had."""
    kills = [["loop", 3, 5], ["snapshot", 0, 3], ["write", 0, 3], ["commit", 0, 1]]
    told = run(tmp_path / "run", 4, kills=kills)
    assert told[0]["start_epoch"] > 1
    assert comparable(told) == comparable(told_by(finished[4], 4))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 3), (4, 2)])
def test_another_size_of_the_gang(
    tmp_path: Path, finished: dict[int, Path], before: int, now: int
) -> None:
    """What is replicated is exact; known ranks get their state back, new ones draw their own."""
    directory = tmp_path / "run"
    shutil.copytree(finished[before], directory)
    told = run(directory, now)  # only start(): all epochs are there
    old = told_by(finished[before], before)
    for rank, one in enumerate(told):
        assert one["start_epoch"] == EPOCHS + 1
        assert one["replicated"] == old[0]["replicated"]
        assert one["log"] == (old[0]["log"] if rank == 0 else None)
        if rank < before:
            assert one["draws"] == old[rank]["draws"]
            assert one["total"] == old[rank]["total"]
        else:
            assert one["total"] == 0.0
    draws = {tuple(one["draws"][:2] + one["draws"][3:]) for one in told}
    assert len(draws) == now, "two ranks draw the same"
    (warning,) = told[0]["warnings"]
    assert f"made by {before} rank(s), this gang has {now}" in warning
    if (before, now) == (1, 3):
        assert comparable(run(directory, now)) == comparable(told), "the rule is a rule"
    if (before, now) == (2, 1):
        assert run(directory, now, last=EPOCHS + 1)[0]["start_epoch"] == EPOCHS + 1
        assert Checkpointer(directory).list_existing_checkpoint_indices()[-1] == EPOCHS + 1
