"""A storm of SIGINT leaves collector, threads, fence and checkpoints as they were."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from ray_imuckpt import Checkpointer
from support.programs import HANGS, run_program


def storm(
    where: Path, seed: int, interrupts: int, snapshot: str, seconds: float = HANGS
) -> dict[str, int]:
    """What a process tells that has been interrupted so often; see support/runs/interrupted.py."""
    program = "support.runs.interrupted"
    process = run_program(program, where, seed, interrupts, snapshot, timeout=seconds)
    assert process.returncode == -signal.SIGINT, process.stderr[-5000:]
    told: dict[str, int] = json.loads(process.stdout)
    assert told["interrupted"] == interrupts
    last = Checkpointer(where / "background")
    assert last.index_of_last_checkpoint() == told["last"], "its last save was finished"
    last.verify(told["last"])
    return told


@pytest.mark.parametrize("snapshot", ["eager", "overlap"])
def test_a_storm_of_interrupts_leaves_everything_as_it_was(tmp_path: Path, snapshot: str) -> None:
    """After each one: collector on, no thread at work, fence open, a further save whole."""
    storm(tmp_path, seed=1, interrupts=150, snapshot=snapshot)
