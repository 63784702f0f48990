"""A run that is killed at any moment loses nothing durable, and goes on as if never killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.programs import run_program


def campaign(
    where: Path, seed: int, kills: int, ranks: int, *, sharded: bool = False
) -> dict[str, Any]:
    """What came of a run that was killed so often (support/runs/killed.py), where all is well."""
    more = ["sharded"] if sharded else []
    process = run_program("support.runs.killed", where, seed, kills, ranks, *more, timeout=None)
    assert process.returncode == 0, process.stderr[-5000:]
    told: dict[str, Any] = json.loads(process.stdout)
    assert not told["problems"], told
    assert sum(told[f"kills of rank {rank}"] for rank in range(ranks)) == kills
    assert told["lost"] == told["torn"] == told["another run"] == told["hangs"] == 0, told
    assert told["as if never killed"], told
    return told


def test_a_run_that_is_killed_again_and_again_loses_and_tears_nothing(tmp_path: Path) -> None:
    """In a process of its own."""
    campaign(tmp_path, seed=1, kills=20, ranks=1)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_a_rank_that_is_killed_loses_and_tears_nothing(tmp_path: Path, sharded: bool) -> None:
    """One rank of two, whose other rank ends by itself; where rank 0 writes, and where both do."""
    campaign(tmp_path, seed=2, kills=4, ranks=2, sharded=sharded)
