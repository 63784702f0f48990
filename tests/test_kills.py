"""A run that is killed at any moment loses nothing durable, and goes on as if never killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.programs import run_program


def campaign(where: Path, seed: int, kills: int, ranks: int) -> dict[str, Any]:
    """What came of a run that was killed so often (support/runs/killed.py), where all is well."""
    process = run_program("support.runs.killed", where, seed, kills, ranks)
    assert process.returncode == 0, process.stderr[-5000:]
    told: dict[str, Any] = json.loads(process.stdout)
    assert not told["problems"], told
    assert sum(told[f"kills of rank {rank}"] for rank in range(ranks)) == kills
    assert told["lost"] == told["torn"] == told["another run"] == told["hangs"] == 0, told
    assert told["as if never killed"], told
    return told


@pytest.mark.parametrize(
    ("kills", "ranks"), [(20, 1), pytest.param(8, 2, marks=pytest.mark.slow)], ids=str
)
def test_a_run_that_is_killed_again_and_again_loses_and_tears_nothing(
    tmp_path: Path, kills: int, ranks: int
) -> None:
    """In a process of its own, and one rank of a gang of two, whose other rank ends by itself."""
    campaign(tmp_path, seed=ranks, kills=kills, ranks=ranks)
