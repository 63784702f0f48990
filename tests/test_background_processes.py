"""Promise 7: a process that ends, fails or is terminated loses no save that it has begun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ray_imuckpt import Checkpointer

SCRIPT = """
import sys, torch
from torch import nn
from ray_imuckpt import Checkpointer
model = nn.Linear(2000, 2000)
Checkpointer(sys.argv[1]).checkpoint(1, model=model)
if sys.argv[2] == "raise":
    raise ValueError("the loop's own")
"""


@pytest.mark.parametrize("how", ["end", "raise"])
def test_a_process_that_ends_finishes_its_save(tmp_path: Path, how: str) -> None:
    """Also one that ends with an error, and when nobody waits."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), how],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == (1 if how == "raise" else 0)
    Checkpointer(tmp_path).verify(1)


def test_pools_still_work_while_the_last_save_is_written(tmp_path: Path) -> None:
    """Asynchronous file systems need one; concurrent.futures closes them when the script ends."""
    script = (
        "import sys, time\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from torch import nn\n"
        "from ray_imuckpt import Checkpointer\n"
        "from ray_imuckpt.storage.local import LocalStorage\n"
        "pool = ThreadPoolExecutor(1)\n"
        "real = LocalStorage.put_if\n"
        "def put(self, name, data, seen):\n"
        "    time.sleep(0.5)\n"
        "    return pool.submit(real, self, name, data, seen).result()\n"
        "LocalStorage.put_if = put\n"
        "Checkpointer(sys.argv[1]).checkpoint(1, model=nn.Linear(2, 2))\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    Checkpointer(tmp_path).verify(1)


def test_an_error_that_nobody_asked_for_is_told_at_exit(tmp_path: Path) -> None:
    """The last save of a script has no later call to raise its error."""
    (tmp_path / "file").write_text("not a directory")
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "file" / "run"), "end"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "The last save of this process failed" in result.stderr
    assert "checkpoint=1" in result.stderr


def test_sigterm_during_a_save_commits_nothing_that_is_not_whole(tmp_path: Path) -> None:
    """Whatever is listed afterwards can be verified."""
    script = (
        "import sys, time, torch\n"
        "from torch import nn\n"
        "from ray_imuckpt import Checkpointer\n"
        "checkpointer = Checkpointer(sys.argv[1])\n"
        "model = nn.Linear(1500, 1500)\n"
        "for epoch in range(1, 1000):\n"
        "    checkpointer.checkpoint(epoch, model=model)\n"
        "    print(epoch, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    process.terminate()
    process.wait()
    process.stdout.close()
    checkpointer = Checkpointer(tmp_path)
    found = checkpointer.list_existing_checkpoint_indices()
    assert len(found) >= 2
    for epoch in found:
        checkpointer.verify(epoch)
