"""What a run tells its user where nobody leads the log: lines, a panel, bars; and where not."""

from __future__ import annotations

import io
import logging
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from conftest import small_model, train
from ray_imuckpt import Checkpointer
from ray_imuckpt.gang import Gang
from ray_imuckpt.reporting.journal import Journal
from ray_imuckpt.reporting.lines import Lines
from support.terminals import on_a_terminal

LOGGER = logging.getLogger("ray_imuckpt")
RESTORED = (
    "ray_imuckpt: Restored: model, optimizer, log of 2, scheduler, random state; "
    "saved: # UTC by run #; gang: 1 rank."
)


def leave_log_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the handlers of pytest's, which has some of its own where nothing propagates."""
    monkeypatch.setattr(LOGGER, "propagate", False)
    monkeypatch.setattr(LOGGER, "handlers", [])


def test_who_has_set_up_nothing_is_shown_what_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From scratch, each commit, what is resumed, and what of it; on standard error."""
    leave_log_alone(monkeypatch)
    train(tmp_path, 2)
    train(tmp_path, 2)
    out, shown = capsys.readouterr()
    assert out == ""
    numbers = re.sub(r"[\d.]+ (kB|s)\b|[0-9a-f]{12}\b|\d{4}-\S+ \S+", "#", shown)
    assert numbers.splitlines() == [
        f"ray_imuckpt: Beginning from scratch: there is no checkpoint in {tmp_path}.",
        *(
            f"ray_imuckpt: Committed epoch {epoch}: #, training waited #, durable after #, at "
            f"{tmp_path}/checkpoint={epoch}."
            for epoch in (1, 2)
        ),
        f"ray_imuckpt: Resumed from epoch 2: # in # from {tmp_path}/checkpoint=2.",
        RESTORED,
    ]


LED: dict[str, Any] = {
    "a handler": lambda m: m.setattr(LOGGER, "handlers", [logging.NullHandler()]),
    "a handler of the root": lambda m: m.setattr(LOGGER, "propagate", True),
    "a level": lambda m: m.setattr(LOGGER, "level", logging.WARNING),
    "a logger that is disabled": lambda m: m.setattr(LOGGER, "disabled", True),
    "logging disabled": lambda m: m.setattr(LOGGER.manager, "disable", logging.CRITICAL),
    "no standard error": lambda m: m.setattr(sys, "stderr", None),
    "progress=False": lambda m: None,
}


@pytest.mark.parametrize("how", LED)
def test_who_leads_the_log_or_wants_no_lines_is_shown_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """What is set up afterwards counts, and is not changed."""
    checkpointer = Checkpointer(tmp_path, blocking=True, progress=how != "progress=False")
    leave_log_alone(monkeypatch)
    LED[how](monkeypatch)
    before = (LOGGER.level, list(LOGGER.handlers), LOGGER.propagate)
    checkpointer.start(small_model())
    checkpointer.checkpoint(1, model=small_model())
    checkpointer.start(small_model())
    assert (LOGGER.level, list(LOGGER.handlers), LOGGER.propagate) == before
    assert capsys.readouterr() == ("", "")


def test_who_wants_no_lines_gets_no_records_of_theirs_either(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Ray's workers show what is logged: there one switch is to be enough as well."""
    caplog.set_level(logging.DEBUG, "ray_imuckpt")
    for progress, level in ((True, logging.INFO), (False, logging.DEBUG)):
        caplog.clear()
        Checkpointer(tmp_path, blocking=True, progress=progress).checkpoint(1, model=small_model())
        assert [record.levelno for record in caplog.records] == [level]


def test_only_rank_0_shows_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A gang of a hundred ranks tells its story once."""
    leave_log_alone(monkeypatch)
    journal = Journal(Lines(wanted=True))
    other = cast("Gang", SimpleNamespace(rank=1, world_size=2))
    targets: Any = None
    journal.started(other, str(tmp_path), targets, None, 1.0, [], looked=True)
    with journal.restoring(other) as progress:
        assert progress._advanced is None
    assert journal.saving(other, str(tmp_path), 1, 0.0, waits=True).progress._advanced is None
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_has_gone_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed standard error costs the lines, and not the save."""
    leave_log_alone(monkeypatch)
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.checkpoint(1, model=small_model())
    assert checkpointer.list_existing_checkpoint_indices() == [1]


def test_a_switch_that_is_none_is_refused() -> None:
    """Neither 1 nor "no" is taken for an answer."""
    with pytest.raises(TypeError, match="progress"):
        Checkpointer(progress="no")  # type: ignore[arg-type]


ON_A_TERMINAL = """
import sys
import tqdm
from conftest import small_model
from ray_imuckpt import Checkpointer
from ray_imuckpt.reporting import bars
bars.PATIENCE = 0.0  # so that every chunk is worth showing
directory = sys.argv[1]
for epoch in tqdm.tqdm(range(1, 4), desc="loop"):
    with Checkpointer(directory) as checkpointer:
        checkpointer.start(small_model())
        checkpointer.checkpoint(epoch, model=small_model())
Checkpointer(directory, blocking=True).checkpoint(4, model=small_model())
"""


def screen(shown: str) -> list[str]:
    """Return what is left on a terminal, of the codes that tqdm and rich send."""
    rows: list[list[str]] = [[]]
    row = column = 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x1b]", shown):
        if token == "\n":
            row += 1
        elif token == "\r":
            column = 0
        elif token.endswith("A") and len(token) > 1:
            row -= int(token[2:-1] or 1)
        elif len(token) == 1:
            rows += [[] for _ in range(row + 1 - len(rows))]
            rows[row] += " " * (column + 1 - len(rows[row]))
            rows[row][column] = token
            column += 1
    return ["".join(cells).rstrip() for cells in rows]


def test_on_a_terminal_bars_of_the_loop_stay_whole(tmp_path: Path) -> None:
    """A panel and lines stand above the bar of the loop, which is left once, at the end."""
    sent = on_a_terminal(200, "-c", ON_A_TERMINAL, str(tmp_path), TERM="xterm")
    rows = [row for row in screen(sent) if row]
    assert "Restoring" in sent, "a bar has moved"
    assert not [row for row in rows if "Restoring" in row or "Saving epoch 4" in row], "and gone"
    lines = [row for row in rows if row.startswith("ray_imuckpt: ")]
    panels = [row for row in rows if row.startswith(("╭", "│", "╰"))]
    bars = [row for row in rows if row.startswith("loop: 100%")]
    assert len(bars) == 1
    assert sorted([*lines, *panels, *bars]) == sorted(rows), "nothing is mixed"
    assert sum("Committed epoch" in line for line in lines) == 4
    assert [row[3:23] for row in panels if row[0] == "╭"] == [
        "Resumed from epoch 1",
        "Resumed from epoch 2",
    ]
    words = [row.strip("│ ").split(maxsplit=1) for row in panels if row[0] == "│"]
    assert ["restored", "model, random state"] in words
    assert ["from", f"{tmp_path}/checkpoint=2"] in words
    assert ["gang", "1 rank"] in words
