"""Whatever lies in a checkpoint's directory: an error of ours or accepted, within bounds.

Who can write there can give a manifest its right checksum. See SECURITY.md for what is promised.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import python_path
from forgeries import MEMORY
from forgerycases import CASES, SOUND

ABSENT = {"manifest: a directory"}
"""The names of those that leave no checkpoint of the epoch: as ever, the one before it is taken."""


@pytest.fixture(scope="module")
def came_of_it(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of every use of every forgery, in a process with limits."""
    command = [sys.executable, str(Path(__file__).with_name("forgeries.py"))]
    done = subprocess.run(
        [*command, str(tmp_path_factory.mktemp("forged"))],
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_forgery_is_an_error_of_ours_or_accepted(came_of_it: Any, name: str) -> None:
    """In every call and command that reads; and "last" passes over it to the one before."""
    uses = came_of_it["results"][name]
    assert not {use: what for use, what in uses.items() if what.startswith("fault")}
    if name in SOUND:
        assert (uses["start"], uses["last"], uses["read"]) == ("3", "3", "done")
    else:
        absent = name in ABSENT
        assert uses["start"].startswith("error") or (absent and uses["start"] == "2")
        assert uses["last"] == "2"
        assert uses["go on"] == "done" or absent  # no file can take a directory's place


def test_forgeries_take_no_memory(came_of_it: Any) -> None:
    """Though they ask for gigabytes."""
    assert came_of_it["memory"] < MEMORY


def test_the_sound_one_is_read_by_every_use(came_of_it: Any) -> None:
    """Else the others would show nothing."""
    uses = came_of_it["results"]["sound"]
    assert not [what for what in uses.values() if what.startswith(("error", "fault"))]
