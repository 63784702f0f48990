"""A storm of SIGINT leaves collector, threads, fence and checkpoints as they were."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import python_path
from ray_imuckpt import Checkpointer


def storm(where: Path, seed: int, interrupts: int, snapshot: str, seconds: float) -> dict[str, int]:
    """What a process tells that has been interrupted so often; see support/runs/interrupted.py."""
    process = subprocess.run(
        [
            sys.executable, "-m", "support.runs.interrupted",
            str(where), str(seed), str(interrupts), snapshot,
        ],
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True, text=True, check=False, timeout=seconds,
    )  # fmt: skip
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
    storm(tmp_path, seed=1, interrupts=150, snapshot=snapshot, seconds=300)
