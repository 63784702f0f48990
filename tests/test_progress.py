"""How far a save or a restore has come: what is counted, and when it is shown."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import adamw, small_model
from ray_imuckpt import Checkpointer, load, units
from ray_imuckpt.arguments import LAST
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading import selection
from ray_imuckpt.loading.targets import Targets
from ray_imuckpt.progress import Progress
from ray_imuckpt.reporting import bars
from ray_imuckpt.reporting.bars import Bar
from ray_imuckpt.reporting.lines import Lines
from ray_imuckpt.repository.run import RunIdentity
from ray_imuckpt.storage import open_storage


@pytest.fixture
def shown(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What is told from one call to the next."""
    caplog.set_level(logging.INFO, "ray_imuckpt")

    def tell() -> list[str]:
        found = [record.message for record in caplog.records]
        caplog.clear()
        return found

    return tell


def test_what_lasts_is_told_after_five_seconds_and_each_time_that_that_has_doubled(
    shown: Callable[[], list[str]],
) -> None:
    """A save of an hour is a handful of lines, and one of four seconds none."""
    now = [100.0]
    bar = Bar(Lines(wanted=True), "Saving epoch 4", moves=False, clock=lambda: now[0])
    progress = Progress(bar.advanced)
    progress.expect(40_000_000)
    told: dict[int, list[str]] = {}
    for second in range(1, 41):
        now[0] += 1.0
        progress.add(1_000_000)
        told[second] = shown()
    assert {second: lines for second, lines in told.items() if lines} == {
        5: ["Saving epoch 4: 12 % of 40.0 MB after 5 s, 1.0 MB/s."],
        10: ["Saving epoch 4: 25 % of 40.0 MB after 10 s, 1.0 MB/s."],
        20: ["Saving epoch 4: 50 % of 40.0 MB after 20 s, 1.0 MB/s."],
        40: ["Saving epoch 4: 100 % of 40.0 MB after 40 s, 1.0 MB/s."],
    }
    bar.end()
    now[0] += 1000.0
    progress.add(1)
    assert shown() == [], "it has ended"


def test_what_cannot_be_shown_harms_no_save(caplog: pytest.LogCaptureFixture) -> None:
    """A terminal's trouble is noted once, and whoever writes a chunk goes on."""
    caplog.set_level(logging.DEBUG, "ray_imuckpt")

    class Broken(Lines):
        def tell(self, message: str, *values: object) -> None:
            raise RuntimeError("no terminal")

    now = [0.0]
    bar = Bar(Broken(wanted=True), "Saving epoch 4", moves=False, clock=lambda: now[0])
    now[0] = 6.0
    for _ in range(3):
        bar.advanced(Progress())
    assert [record.message for record in caplog.records] == [
        "A bar could not be shown: RuntimeError('no terminal')"
    ]


def test_what_is_sent_again_counts_once() -> None:
    """More than all is never said."""
    progress = Progress(lambda _: None)
    progress.expect(10)
    for _ in range(3):
        progress.add(6)
    assert (progress.moved, progress.expected) == (10, 10)


def test_bytes_are_counted_on_any_thread() -> None:
    """None is lost, and whoever shows them may look meanwhile."""
    progress = Progress(lambda counted: counted.moved)
    progress.expect(8 * 5000)

    def add() -> None:
        for _ in range(5000):
            progress.add(1)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress.moved == 8 * 5000


def test_all_bytes_of_a_save_and_of_a_restore_are_counted(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    shown: Callable[[], list[str]],
) -> None:
    """The last chunk makes it a hundred percent; a save and a restore that last say so."""
    monkeypatch.setattr(bars, "PATIENCE", 0.0)
    model = small_model()
    optimizer = adamw(model)
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.checkpoint(1, model=model, optimizer=optimizer)
    saving = [line for line in shown() if line.startswith("Saving epoch 1: ")]
    files = checkpointer.read(1).manifest.files
    assert saving
    checkpointer.start(model, optimizer)
    assert [line for line in shown() if line.startswith("Restoring: ")]

    progress = Progress(lambda _: None)
    targets = Targets(model, optimizer, {}, {}, None)
    storage = open_storage(str(tmp_path))
    selection.begin(Gang(), storage, LAST, RunIdentity(), targets, progress, strict=True)
    expected = sum(entry.size for entry in files if entry.suffix == "safetensors")
    assert progress.moved == progress.expected == expected

    shown()
    checkpointer.load(model, 1)
    load(model, tmp_path / "checkpoint=1")
    of_model = sum(e.size for e in files if e.part in ("model", "model_frozen"))
    lines = [line for line in shown() if line.startswith("Loading: ")]
    assert len(lines) >= 2
    assert all(f" of {units.size(of_model)} after " in line for line in lines)
    caplog.set_level(logging.INFO, "ray_imuckpt")
    Checkpointer(tmp_path, progress=False).load(model, 1)
    load(model, tmp_path / "checkpoint=1", progress=False)
    assert not [line for line in shown() if line.startswith("Loading")]


def test_how_far_a_restore_has_come_never_steps_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: Callable[[], list[str]]
) -> None:
    """What of the state is read before the model is not shown as the whole."""
    monkeypatch.setattr(bars, "PATIENCE", 0.0)
    model = torch.nn.Linear(300, 300)
    optimizer = adamw(model)
    table = torch.zeros(1_000_000)
    checkpointer = Checkpointer(tmp_path, blocking=True)
    checkpointer.checkpoint(1, model=model, optimizer=optimizer, table=table)
    parts: list[tuple[int, int]] = []
    progress = Progress(lambda counted: parts.append((counted.moved, counted.expected)))
    targets = Targets(model, optimizer, {}, {}, None)
    storage = open_storage(str(tmp_path))
    selection.begin(Gang(), storage, LAST, RunIdentity(), targets, progress, strict=True)
    shares = [moved / expected for moved, expected in parts]
    assert shares == sorted(shares)
    assert 0.5 < shares[0] < 1.0, "the table is not all"
    assert shares[-1] == 1.0
