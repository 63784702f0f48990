"""Processes that ``torchrun`` starts, and starts again. Touches the environment and /proc.

A run is one invocation of torchrun: the job's id (``--rdzv-id``) may be given to many. It is known
by the process that started rank 0, torchrun's agent, which outlives the workers that it restarts. A
new agent (of a node that rank 0 has moved to, of a torchrun that was started again) is a new run,
which begins with what `continue_from` says; so is every restart where the agent starts the workers
by way of another program, a shell for example.
"""

from __future__ import annotations

import os
from datetime import timedelta

from ray_imuckpt.gang import current
from ray_imuckpt.repository.run import RunIdentity
from ray_imuckpt.runtime.script import ScriptSession
from ray_imuckpt.storage import Storage

NAME = "torchrun"

_JOB, _RESTARTS = "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"


def present() -> bool:
    """Return whether torchrun, or what builds on its agent, has started this process."""
    return _JOB in os.environ


def session(timeout: timedelta) -> ScriptSession:
    """Return the session of a worker: nothing is reported to torchrun, but it names the run."""
    restarts = int(os.environ.get(_RESTARTS, "0"))
    identity = RunIdentity(_invocation(os.environ[_JOB]), may_be_restart=restarts > 0)
    return ScriptSession(NAME, current(timeout), identity)


def run_directory() -> Storage | None:
    """Return ``None``: the script names its directory itself."""
    return None


def _invocation(job: str) -> str:
    """Return a name of the torchrun that started this process.

    The parent's number and, since numbers are used again, when it began and since which boot. Where
    there is no /proc (macOS, Windows) the number alone, with the job's id, has to do.
    """
    parent = os.getppid()
    try:
        with open(f"/proc/{parent}/stat", encoding="ascii", errors="replace") as file:
            begun = file.read().rpartition(")")[2].split()[19]  # field 22; a name may hold spaces
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            since = f"-{begun}-{file.read().strip()}"
    except (OSError, IndexError):
        since = ""
    return f"torchelastic-{job}-{parent}{since}"
