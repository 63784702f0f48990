"""Decide whether a failed save ends the training; counted alike on every rank. No collective."""

from __future__ import annotations

import logging

from ray_imuckpt.errors import SaveFailedError
from ray_imuckpt.options import Saving

logger = logging.getLogger("ray_imuckpt")


class LastingFailureError(SaveFailedError):
    """A save failed, and so will every later one: another run saves here. Ranks get its base."""


class Failures:
    """The saves that have failed since the last one that was committed.

    Args:
        saving: It says how many of them are tolerated.
    """

    def __init__(self, saving: Saving) -> None:
        self._tolerated = saving.max_failed_saves if saving.tolerant else 0
        self._in_a_row = 0

    def committed(self) -> None:
        """Note that a save was committed."""
        self._in_a_row = 0

    def tolerates(self, error: Exception, *, lasting: bool, rank: int) -> bool:
        """Return whether training goes on after a save that failed; if so, warn on rank 0.

        Args:
            error: How it failed. What is not the storage's failure is not tolerated: state that
                cannot be stored, ranks that differ.
            lasting: Whether every later save will fail as well.
            rank: This rank.
        """
        self._in_a_row += 1
        if lasting or not isinstance(error, SaveFailedError) or self._in_a_row > self._tolerated:
            return False
        if rank == 0:
            logger.warning(
                "A save failed and training goes on: %d in a row, and the run ends with number %d. "
                "%s",
                self._in_a_row,
                self._tolerated + 1,
                error,
            )
        return True
