"""Nothing is printed: neither by this package nor by what moves its bytes, in C, Rust or Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from conftest import python_path
from tools.simulated_store import Action, Fault, SimulatedStore

PROGRAM = """
import json, logging, sys
from torch import nn
from ray_imuckpt import Checkpointer, Retention, Retries, SaveFailedError
logger = logging.getLogger("ray_imuckpt")  # warnings are for the log, which goes where it is led
logger.addHandler(logging.NullHandler())
logger.propagate = False
model = nn.Linear(1200, 1200)
told = []
for engine, more in (("obstore", {}), ("s3fs", {"config_kwargs": {"user_agent_extra": "tests"}})):
    for end in ("passing", "lasting"):
        checkpointer = Checkpointer(
            f"s3://bucket/{engine}-{end}",
            storage_options=json.loads(sys.argv[1]) | more,
            retries=Retries(attempts=3, deadline=5),
            retention=Retention(keep_last=1),
        )
        try:
            with checkpointer:
                checkpointer.start(model)
                for epoch in (1, 2):
                    checkpointer.checkpoint(epoch, model=model, metrics={"loss": 1.0})
            checkpointer.load(model)
        except SaveFailedError:
            told.append(end)
raise SystemExit(0 if told == ["lasting", "lasting"] else 1)
"""


def test_a_run_prints_nothing_whatever_the_store_does(simulated_store: SimulatedStore) -> None:
    """Not when all is well, when faults pass, and when a save fails: the error is raised."""
    simulated_store.fail(
        *(
            fault
            for engine in ("obstore", "s3fs")
            for fault in (
                Fault(Action.SLOW_DOWN, "create upload", key=f"{engine}-passing"),
                Fault(Action.RESET_REQUEST, "upload part", key=f"{engine}-passing"),
                Fault(Action.RESET_ANSWER, "get", key=f"{engine}-passing/.*safetensors"),
                Fault(Action.LOST, "put", key=f"{engine}-passing/.*manifest"),
                Fault(Action.RESET_REQUEST, "upload part", key=f"{engine}-lasting", times=None),
            )
        )
    )
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(simulated_store.options)],
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert all(simulated_store.met())
