"""Under torchrun a run is one invocation, also where many share the job's id."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import python_path
from support.programs import HANGS

# An agent as torchrun is one: it outlives its workers, and starts them again.
AGENT = """
import os, sys, traceback
from conftest import small_model
from ray_imuckpt import Checkpointer

def worker(restarts, epochs):
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(restarts)
    model = small_model()
    checkpointer = Checkpointer(sys.argv[1], continue_from="none", blocking=True)
    print(checkpointer.start(model).start_epoch, flush=True)
    for epoch in epochs:
        checkpointer.checkpoint(epoch, model=model)

for restarts, saves in enumerate(sys.argv[2].split("/")):
    child = os.fork()
    if child == 0:
        try:
            worker(restarts, [int(n) for n in saves.split(",") if n])
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def invoke(directory: Path, saves: str) -> list[int]:
    """The first epoch of each attempt of one invocation; `saves` of each, between slashes."""
    environment = {**os.environ, "PYTHONPATH": python_path(), "TORCHELASTIC_RUN_ID": "job"}
    result = subprocess.run(
        [sys.executable, "-c", AGENT, str(directory), saves],
        env=environment, capture_output=True, text=True, timeout=HANGS, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return [int(line) for line in result.stdout.split()]


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs Linux's /proc")
def test_a_restart_goes_on_and_another_invocation_of_the_same_job_id_does_not(
    tmp_path: Path,
) -> None:
    """A restart of torchrun is the same run; a new torchrun with its id is not."""
    assert invoke(tmp_path, "1,2/3/") == [1, 3, 4]
    assert invoke(tmp_path, "/1/") == [1, 1, 2], "3 is of an earlier invocation"
