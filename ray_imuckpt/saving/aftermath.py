"""Do what follows a commit, on rank 0, on the thread that wrote. Its failures are no save's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ray_imuckpt.encoding import tree
from ray_imuckpt.options import Retention
from ray_imuckpt.repository import paths, retention
from ray_imuckpt.repository.judgement import Known
from ray_imuckpt.repository.manifest import Manifest, Stored
from ray_imuckpt.repository.run import Run
from ray_imuckpt.storage import Storage
from ray_imuckpt.storage.names import join

logger = logging.getLogger("ray_imuckpt")

OnCommit = Callable[[str, dict[str, Any]], object]
"""A user's function: of a committed checkpoint's path or URL, and of its metrics."""


class Aftermath:
    """The steps that follow each commit: the user's function, then the deletion of old checkpoints.

    Args:
        on_commit: The user's function, if there is one.
        rules: Which checkpoints to keep; ``None``: all.
    """

    def __init__(self, on_commit: OnCommit | None, rules: Retention | None) -> None:
        self._on_commit = on_commit
        self._rules = rules
        self._left_alone = False
        self._swept: str | None = None  # the directory whose leftovers were looked for

    def follow(self, storage: Storage, run: Run, manifest: Manifest, *, prunes: bool) -> None:
        """Do what follows a commit; failures are warnings.

        Args:
            storage: The run directory.
            run: The memory of the run.
            manifest: What was committed.
            prunes: Whether to delete old checkpoints: not where the surroundings do.
        """
        if self._on_commit is not None:
            self._call(self._on_commit, storage, manifest)
        if self._rules is None:
            return
        if prunes:
            run.stored[manifest.epoch] = Stored(manifest, manifest.to_bytes()).light()
            self._prune(self._rules, storage, run)
        elif not self._left_alone:
            self._left_alone = True
            logger.warning(
                "retention= is not followed in %s: Ray deletes checkpoints there (num_to_keep of "
                "its CheckpointConfig), and would fail on one that is gone. Leave out one of both.",
                storage.url,
            )

    def _call(self, on_commit: OnCommit, storage: Storage, manifest: Manifest) -> None:
        url = join(storage.url, paths.checkpoint_name(manifest.epoch))
        try:
            on_commit(url, tree.decode_dict(manifest.metrics, {}))
        except Exception:
            logger.warning("on_commit failed for %s, which is committed:", url, exc_info=True)

    def _prune(self, rules: Retention, storage: Storage, run: Run) -> None:
        try:
            protected = [] if run.resumed_from is None else [run.resumed_from]
            sweep = self._swept != storage.url
            known = Known(run.record, run.stored, run.lacking)
            retention.prune(storage, rules, protected, sound=run.sound, known=known, sweep=sweep)
            self._swept = storage.url
        except Exception as error:  # noqa: BLE001 - the next save tries it again
            logger.warning(
                "Old checkpoints in %s could not be deleted; the next save tries it again: %s",
                storage.url,
                error,
            )
