"""Storms of SIGINT: IMUCKPT_INTERRUPTS of them (2,000), half of them with an overlapped copy."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from test_storm import storm

INTERRUPTS = int(os.environ.get("IMUCKPT_INTERRUPTS", "2000"))


@pytest.mark.slow
@pytest.mark.parametrize("snapshot", ["eager", "overlap"])
def test_a_long_storm_of_interrupts_leaves_everything_as_it_was(
    tmp_path: Path, snapshot: str
) -> None:
    """As test_storm.py, with a seed of its own each time."""
    seed = int(os.environ.get("SOAK_SEED", random.randrange(1_000_000)))
    print(f"\n{snapshot}: SOAK_SEED={seed}")
    told = storm(tmp_path, seed, INTERRUPTS // 2, snapshot, seconds=3600)
    print(
        f"{told['interrupted']} interrupts in {told['calls']} calls: collector on, no thread left, "
        f"fence open after each; {told['whole']} checkpoints looked at, all whole"
    )
