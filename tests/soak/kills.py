"""Kills: IMUCKPT_KILLS of them (1,000): of one process, and of one rank of two.

One in ten of a rank whose model is replicated, one in five of one whose model is sharded, so that
both ranks write; those of Ray's workers, one in fifty, are in ray_kills.py.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from drivers import KILLS, RAY_KILLS
from test_kills import campaign


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "ranks", "sharded"),
    [
        (KILLS - KILLS // 10 - KILLS // 5 - RAY_KILLS, 1, False),
        (KILLS // 10, 2, False),
        (KILLS // 5, 2, True),
    ],
    ids=str,
)
def test_a_run_that_is_killed_a_thousand_times_loses_and_tears_nothing(
    tmp_path: Path, kills: int, ranks: int, sharded: bool
) -> None:
    """As test_kills.py, with a seed of its own each time."""
    seed = int(os.environ.get("SOAK_SEED", random.randrange(1_000_000)))
    print(f"\nSOAK_SEED={seed}")
    told = campaign(tmp_path, seed, kills, ranks, sharded=sharded)
    print(
        f"{kills} kills in a gang of {ranks}: {told['lost']} lost, {told['torn']} torn, "
        f"{told['another run']} other than before; {told['killed between first file and commit']} "
        f"between the first file and the commit; {told['verified']} checkpoints verified, "
        f"{told['epochs']} epochs, as if never killed"
    )
