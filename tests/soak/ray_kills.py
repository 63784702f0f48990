"""Ray Train runs whose workers, or drivers, are killed: each ends as if it had not been."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

from drivers import RAY_KILLS, drive, kill_driver, told_by, wait_for
from ray_imuckpt import Checkpointer
from test_examples import run_smoke


def gang_after(where: Path, before: set[str]) -> set[str]:
    """The process ids of the workers, once both have started that were not there before."""
    now: set[str] = set()

    def up() -> bool:
        now.clear()
        now.update(pid.read_text() for pid in where.glob("pid-*"))
        return len(now) == 2 and not now & before

    wait_for(up)
    return now


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Workers, and now and then the driver, by SIGKILL at moments drawn at random."""
    seed = int(os.environ.get("SOAK_SEED", time.time_ns() % 1_000_000))
    print(f"SOAK_SEED={seed}")
    draw = random.Random(seed)
    last = 6 * RAY_KILLS
    whole = told_by(drive(tmp_path / "whole", last))
    where = tmp_path / "killed"
    where.mkdir()
    (where / "hold").touch()
    driver = drive(where, last, PAUSE="0.5")
    before: set[str] = set()
    for kill in range(1, RAY_KILLS + 1):
        before = gang_after(where, before)
        time.sleep(draw.uniform(0, 3))
        assert driver.poll() is None
        if kill % 6 == 0:
            kill_driver(driver)
            driver = drive(where, last, PAUSE="0.5")
        else:
            os.kill(int(draw.choice(sorted(before))), signal.SIGKILL)
        done = Checkpointer(where / "run").index_of_last_checkpoint()
        print(f"kill {kill} of {RAY_KILLS}: epoch {done} was committed", flush=True)
    (where / "hold").unlink()
    told = told_by(driver)
    assert told["log"] == list(range(1, last + 1))
    assert told["digest"] == whole["digest"]
    for epoch in told["epochs"]:
        Checkpointer(where / "run").verify(epoch)


@pytest.mark.slow
def test_a_driver_that_is_killed_and_started_again_ends_as_if_it_had_not_been(
    tmp_path: Path,
) -> None:
    """Started again, it has the same digest and epochs, though Ray's own record was cut."""
    whole = told_by(drive(tmp_path / "whole", 6))
    where = tmp_path / "killed"
    (tmp_path / "killed").mkdir()
    (where / "hold").touch()
    driver = drive(where, 6)
    wait_for((where / "run" / "checkpoint=5" / "manifest.json").exists)
    kill_driver(driver)
    snapshot = where / "run" / "checkpoint_manager_snapshot.json"
    if snapshot.exists():  # as if it had been killed while it wrote
        snapshot.write_bytes(snapshot.read_bytes()[:-20])
    (where / "hold").unlink()
    told = told_by(drive(where, 6))
    assert told["digest"] == whole["digest"]
    assert told["epochs"] == whole["epochs"] == [1, 2, 3, 4, 5, 6]
    assert told["registered"].endswith("checkpoint=6")


@pytest.mark.slow
def test_kill_and_resume_ends_with_the_weights_of_an_uninterrupted_run(tmp_path: Path) -> None:
    """The demonstration shows it itself; each epoch is in the log once, and saved."""
    directory = tmp_path / "run"
    printed = run_smoke("kill_and_resume.py", tmp_path, directory)
    assert "with SIGKILL" in printed
    assert "weights equal, bit for bit: yes" in printed
    assert re.search(r"^epochs in the log +(1 to 5, each once *){2}$", printed, re.MULTILINE)
    assert re.search(r"^resumed from +- +epoch [234]$", printed, re.MULTILINE)
    lines = [line for line in printed.splitlines() if str(directory) not in line]
    assert len(lines) < 40, "it is seen on one screen"
    assert max(map(len, lines)) <= 100
    for run in ("uninterrupted", "killed"):
        checkpointer = Checkpointer(directory / run)
        assert checkpointer.list_existing_checkpoint_indices() == [1, 2, 3, 4, 5]
        assert [entry["epoch"] for entry in checkpointer.read().log] == [1, 2, 3, 4, 5]
