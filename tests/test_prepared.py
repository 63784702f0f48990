"""Classes that records are held against, when several threads read for the first time at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import python_path
from support.programs import HANGS

GOLDEN = Path(__file__).parent / "golden" / "v1" / "checkpoint=1" / "manifest.json"
# msgspec's private name for what it has learned of a class; where it is called otherwise, look how
# these classes can be made known to it before threads begin.
CODE = """
import sys, threading
from ray_imuckpt.repository import lineage, manifest, pointers
classes = manifest.Manifest, manifest.FileEntry, lineage._Record, pointers._Pointer
print(*[hasattr(one, "__msgspec_cache__") for one in classes])
sys.setswitchinterval(1e-6)
data = open(sys.argv[1], "rb").read()
together = threading.Barrier(16)
def read():
    together.wait()
    manifest.Manifest.from_bytes(data, "url", 1)
threads = [threading.Thread(target=read) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_what_is_read_on_several_threads_is_known_before_they_begin() -> None:
    """Otherwise the process may end by a segmentation fault: of 40 tries 7 did."""
    ended = subprocess.run(
        [sys.executable, "-c", CODE, str(GOLDEN)],
        env={"PYTHONPATH": python_path()},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=HANGS,
    )
    assert ended.stdout.split() == ["True"] * 4
