"""Receipts: the small files by which ranks tell rank 0 what they have written of a save.

Each rank that writes a part of a save puts one when its files are durable, or when they will never
be, with its error. Rank 0 looks for them by their names until all are there. No collective: this is
done on the threads that write.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from ray_imuckpt import units
from ray_imuckpt.encoding.prepared import prepared
from ray_imuckpt.errors import CorruptCheckpointError, SaveFailedError
from ray_imuckpt.repository import paths, records
from ray_imuckpt.repository.manifest import FileEntry
from ray_imuckpt.saving import writer
from ray_imuckpt.saving.files import Files

logger = logging.getLogger("ray_imuckpt")

_PART = "receipt"
_SHORTEST_NAP, _LONGEST_NAP = 0.01, 0.5  # seconds between two looks
_OF_THE_WAIT = 0.05  # a nap is, so that what it adds stays small
_WARN_AFTER, _WARN_AGAIN = 30.0, 300.0
_GRACE = 10.0  # seconds that what was begun may take, beside what this rank's part took
_NAMED = 5  # ranks of an error


@prepared
@dataclass(frozen=True)
class Receipt:
    """The word of a rank about its part of a save.

    Attributes:
        rank: Who gives it.
        files: What it has written.
        error: Why it has not, as `errors.to_wire` has it.
    """

    rank: int
    files: tuple[FileEntry, ...] = ()
    error: Mapping[str, Any] | None = None


class Patience:
    """The patience of rank 0 with ranks whose receipts are not there.

    Args:
        seconds: How long it lasts.

    Attributes:
        needed: Whether rank 0 has written its own part, and waits for the others.
        failures: The errors of other ranks, as `errors.to_wire` has them, by rank, as far as they
            have come to be known in another way than by a receipt.
    """

    def __init__(self, seconds: float) -> None:
        self.needed = False
        self.failures: dict[int, Mapping[str, Any]] = {}
        self._began = time.monotonic()
        self._end = self._began + seconds
        self._hurried = False

    def hurry(self) -> None:
        """Wait only a little longer from now on: a rank has gone, and may never give its own."""
        if not self._hurried:
            self._hurried = True
            now = time.monotonic()
            self._end = min(self._end, now + _GRACE + (now - self._began))

    @property
    def waited(self) -> float:
        """Return for how many seconds there was a save to wait for."""
        return time.monotonic() - self._began

    @property
    def over(self) -> bool:
        """Return whether it has come to its end."""
        return time.monotonic() >= self._end


def put(files: Files, receipt: Receipt) -> None:
    """Put the receipt of this rank; durable on return."""
    record = {"format": records.FORMAT, "save_id": files.save_id, **asdict(receipt)}
    files.storage.put(files.path(_name(files, receipt.rank)), records.seal(record))


def collect(files: Files, ranks: Collection[int], patience: Patience) -> list[FileEntry]:
    """Return what the files of these ranks hold, once each has given its receipt.

    Raises:
        SaveFailedError: A rank has failed, or has given none in time; it names all such ranks.
    """
    patience.needed = True
    receipts: dict[int, Receipt] = {}
    began, warn_after = time.monotonic(), _WARN_AFTER
    while True:
        missing = [rank for rank in ranks if rank not in receipts]
        looks = [functools.partial(_look, files, rank) for rank in missing]
        receipts |= {r.rank: r for r in files.storage.together(looks) if r is not None}
        if writer.ends_in_error():
            patience.hurry()
        for rank, error in patience.failures.items():
            receipts.setdefault(rank, Receipt(rank, error=error))
        if any(receipt.error is not None for receipt in receipts.values()):
            raise _failed(files, [r for r in receipts.values() if r.error is not None])
        missing = [rank for rank in ranks if rank not in receipts]
        whom = units.ranks(missing, _NAMED)
        if not missing:
            return [entry for rank in ranks for entry in receipts[rank].files]
        if patience.over:
            raise SaveFailedError(
                f"Nothing was committed: {whom} did not say within "
                f"{patience.waited:.0f} s what was written there.",
                url=files.url,
                epoch=files.epoch,
                rank=missing[0],
                hint=f"Look into the log of {whom}: did the process end, or is its "
                "storage slow? If writing may take so long, pass Checkpointer(..., timeout="
                "<seconds>).",
            )
        if patience.waited > warn_after:
            logger.warning(
                "Waiting for %s since %.0f s: their files of epoch %d are still to come.",
                whom,
                patience.waited,
                files.epoch,
            )
            warn_after += _WARN_AGAIN
        nap = _OF_THE_WAIT * (time.monotonic() - began)
        time.sleep(min(max(nap, _SHORTEST_NAP), _LONGEST_NAP))


def remove(files: Files, ranks: Collection[int]) -> None:
    """Remove the receipts of these ranks: the manifest says what they have said."""
    paths_of = [files.path(_name(files, rank)) for rank in ranks]
    files.storage.together([functools.partial(files.storage.delete, path) for path in paths_of])


def _name(files: Files, rank: int) -> str:
    return paths.data_file_name(_PART, files.save_id, "json", rank)


def _look(files: Files, rank: int) -> Receipt | None:
    """Return a rank's receipt, ``None`` where there is none yet."""
    path = files.path(_name(files, rank))
    try:
        data = files.storage.get(path)
    except FileNotFoundError:
        return None
    try:
        receipt = msgspec.convert(records.unseal(data, path, "Save again."), Receipt)
    except (ValueError, CorruptCheckpointError) as error:
        return Receipt(rank, error={"type": "SaveFailedError", "message": str(error)})
    if receipt.rank != rank or any(entry.rank != rank for entry in receipt.files):
        return Receipt(rank, error={"message": "Its receipt speaks of another rank."})
    return receipt


def _failed(files: Files, failures: list[Receipt]) -> SaveFailedError:
    first, whom = failures[0], units.ranks([r.rank for r in failures], _NAMED)
    error = first.error or {}
    return SaveFailedError(
        f"Nothing was committed: {whom} could not write what was "
        f"to be written there. {error.get('message', '')}",
        url=error.get("url") or files.url,
        epoch=files.epoch,
        rank=first.rank,
        hint=error.get("hint")
        or "Check that the directory can be written from there, then save again.",
    )
