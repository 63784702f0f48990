"""Drivers of Ray Train runs in processes of their own, to be killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from conftest import python_path

KILLS = int(os.environ.get("IMUCKPT_KILLS", "1000"))  # in one `make soak`, all kinds together
RAY_KILLS = max(2, KILLS // 50)


def drive(where: Path, last: int, **environment: str) -> subprocess.Popen[str]:
    """A driver in a process group of its own."""
    where.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "support.runs.ray_gang", str(where), str(last)],
        env={**os.environ, "PYTHONPATH": python_path(), **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def told_by(driver: subprocess.Popen[str]) -> dict[str, Any]:
    out, errors = driver.communicate(timeout=300)
    assert driver.returncode == 0, errors[-3000:]
    return json.loads(out.split("told ")[1])


def kill_driver(driver: subprocess.Popen[str]) -> None:
    """Kill a driver with SIGKILL, and the Ray that it had started."""
    driver.kill()
    driver.communicate()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(driver.pid, signal.SIGKILL)


def wait_for(what: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)
