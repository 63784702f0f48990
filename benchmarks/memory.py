"""Extra memory of a save: the peak of the resident set above what was there before, by process.

python -m benchmarks.memory NAME MEGABYTES DIR    prints the peak of one kind of save, in MB
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.measure import build
from ray_imuckpt import Checkpointer

STATE = "the state itself (limit)"
OURS: dict[str, dict[str, Any]] = {
    "ray_imuckpt": {},
    "ray_imuckpt, overlap": {"snapshot": "overlap"},
    "ray_imuckpt, blocking": {"blocking": True},
}
PEERS = ("torch.save", "Ray's recipe", "dcp.save", "dcp.async_save", "torchsnapshot.async_take")


def tables(root: Path, megabytes: float) -> None:
    """Print the table, each row measured in a process of its own."""
    rows = {STATE: float(megabytes)}
    for name in (*OURS, *PEERS):
        if "torchsnapshot" in name and not peers.HAS_TORCHSNAPSHOT:
            continue
        with tempfile.TemporaryDirectory(dir=root) as directory:
            command = [sys.executable, "-m", "benchmarks.memory", name, str(megabytes), directory]
            told = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
        rows[name] = float(told.stdout.split()[-1])
    print("\n| extra memory of a save | MB | times the state |\n|---|---|---|")
    for name, megabytes_more in rows.items():
        print(f"| {name} | {megabytes_more:.1f} | {megabytes_more / rows[STATE]:.3f} |", flush=True)


def main(name: str, megabytes: float, root: Path) -> None:
    """Save once to warm up libraries with a small state, then measure."""
    warnings.filterwarnings("ignore")
    with peers.process_group(root):
        _save(name, root / "small", 1)()
        call = _save(name, root / "large", megabytes)
        before = status("VmRSS")
        forget_peak()
        call()
        print(status("VmHWM") - before)


def _save(name: str, root: Path, megabytes: float) -> Callable[[], object]:
    root.mkdir()
    model, optimizer = build(megabytes)
    if name in OURS:
        checkpointer = Checkpointer(root, progress=False, **OURS[name])

        def ours() -> None:
            checkpointer.checkpoint(1, model=model, optimizer=optimizer)
            checkpointer.wait()

        return ours
    later = peers.asynchronous(root, model, optimizer)
    if name in later:
        begin, wait = later[name]
        return lambda: (begin(), wait())
    return peers.savers(root, model, optimizer)[name]


def forget_peak() -> None:
    """Let the peak of the resident set, ``VmHWM``, begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def status(field: str) -> float:
    """Return a field of this process's status in MB."""
    text = Path("/proc/self/status").read_text()
    line = re.search(rf"{field}:\s+(\d+) kB", text)
    assert line is not None, f"no {field}"  # noqa: S101
    return int(line[1]) * 1024 / 1_000_000


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
