"""Starts the programs of the tests, alone or on the ranks of a gang."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from conftest import python_path

HANGS = 600.0  # seconds after which a process is taken for one that waits for ever


def run_program(
    module: str,
    *arguments: object,
    ranks: int = 1,
    timeout: float | None = HANGS,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a module in a process of its own and wait for its end, whatever that is.

    Args:
        module: Its full name, from `tests/` on.
        arguments: What it is to find in ``sys.argv``.
        ranks: On how many ranks torchrun starts it, if on more than one.
        timeout: Seconds after which it is killed.
        environment: What is added to that of this process.

    Returns:
        The status and what was printed.
    """
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    ours = {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", module, *map(str, arguments)],
        env={**os.environ, **ours, **(environment or {})},
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
