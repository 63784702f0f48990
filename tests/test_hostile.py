"""Whatever lies in a checkpoint directory: an error of ours or accepted, within bounds.

Who can write there can give a manifest its right checksum. See SECURITY.md for what is promised.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ray_imuckpt.cli import main
from support.damage.cases import CASES, SOUND
from support.damage.forgeries import MEMORY, Forged, make
from support.programs import run_program

ABSENT = {"manifest: a directory"}
"""The names of those that leave no checkpoint of the epoch: as ever, the one before it is taken."""


@pytest.fixture(scope="module")
def came_of_it(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of every use of every forgery, in a process with limits."""
    done = run_program("support.damage.forgeries", tmp_path_factory.mktemp("forged"))
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


def test_what_a_checkpoint_holds_does_not_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names and texts are shown with what is no letter in them escaped; half a pair, too."""
    make(tmp_path)
    it = Forged(tmp_path)
    it.manifest["versions"] = {"torch": "\x1b[2J\x07"}
    huge = {"$": "int", "v": "0x" + "f" * 9999}
    it.manifest["metrics"] = {"\x1b]0;title\x07": "\r\ud800", "big": huge}
    it.seal()
    for command in (["ls"], ["show", "2"], ["plot", "-m", "big"], ["verify"]):
        status = main([command[0], str(tmp_path), *command[1:]])
        assert status == (2 if command[0] == "plot" else 0)  # no epoch has a number to plot
    out, errors = capsys.readouterr()
    assert "\\x1b[2J\\x07" in out
    assert not {c for c in out + errors if not c.isprintable()} - {"\n"}
