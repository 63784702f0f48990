"""Receipts: what rank 0 makes of the words of other ranks about a save, and how long it waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_imuckpt import SaveFailedError
from ray_imuckpt.repository.manifest import FileEntry
from ray_imuckpt.saving import receipts
from ray_imuckpt.saving.files import Files
from ray_imuckpt.saving.receipts import Patience, Receipt
from ray_imuckpt.storage import open_storage

SAVE = "0123456789abcdef"


def files_of(directory: Path, rank: int) -> Files:
    return Files(open_storage(str(directory)), 3, SAVE, rank, together=True)


def entry_of(rank: int) -> FileEntry:
    name = f"state-{SAVE}-{rank}.json"
    return FileEntry("state", rank, name, 1, 8, ("0" * 32,), 0, "")


def failure(directory: Path, patience: Patience) -> SaveFailedError:
    with pytest.raises(SaveFailedError, match="Nothing was committed") as raised:
        receipts.collect(files_of(directory, 0), range(1, 3), patience)
    return raised.value


def test_files_come_in_the_order_of_the_ranks_and_receipts_go(tmp_path: Path) -> None:
    """Whoever was first; afterwards nothing tells that there were any."""
    for rank in (2, 1):
        receipts.put(files_of(tmp_path, rank), Receipt(rank, (entry_of(rank),)))
    zero = files_of(tmp_path, 0)
    assert receipts.collect(zero, range(1, 3), Patience(60)) == [entry_of(1), entry_of(2)]
    receipts.remove(zero, range(1, 3))
    assert not list((tmp_path / "checkpoint=3").iterdir())


def test_an_error_is_told_before_all_have_come(tmp_path: Path) -> None:
    """With its rank, its message and what to do; nobody waits for the others."""
    error: dict[str, Any] = {"type": "StorageError", "message": "No space.", "hint": "Delete."}
    receipts.put(files_of(tmp_path, 2), Receipt(2, error=error))
    told = failure(tmp_path, Patience(60))
    assert (told.rank, told.epoch, told.hint) == (2, 3, "Delete.")
    assert "rank 2 could not write" in str(told)
    assert "No space." in str(told)


def test_an_error_may_come_to_be_known_in_another_way(tmp_path: Path) -> None:
    """A rank that cannot put its receipt says so when the ranks meet."""
    patience = Patience(60)
    patience.failures[1] = {"type": "SaveFailedError", "message": "Unreachable."}
    assert "rank 1 could not write what was to be written there. Unreachable." in str(
        failure(tmp_path, patience)
    )


@pytest.mark.parametrize("bad", [b"", b"{", b"another rank's"])
def test_a_receipt_that_is_none_ends_the_save(tmp_path: Path, bad: bytes) -> None:
    """Cut, altered, or of another rank: it is an error that names the rank."""
    receipts.put(files_of(tmp_path, 2), Receipt(2, (entry_of(2),)))
    path = tmp_path / "checkpoint=3" / f"receipt-{SAVE}-1.json"
    theirs = path.with_name(f"receipt-{SAVE}-2.json").read_bytes()
    path.write_bytes(theirs if bad == b"another rank's" else bad)
    assert failure(tmp_path, Patience(60)).rank == 1


def test_the_wait_ends_and_names_who_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the deadline; soon after it is known that a rank has gone."""
    assert "ranks 1, 2 did not say" in str(failure(tmp_path, Patience(0)))
    monkeypatch.setattr(receipts, "_GRACE", 0.0)
    patience = Patience(3600)
    patience.hurry()
    patience.hurry()
    receipts.put(files_of(tmp_path, 1), Receipt(1, (entry_of(1),)))
    assert "rank 2 did not say" in str(failure(tmp_path, patience))
