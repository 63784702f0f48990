"""The survey of a run directory when a run starts: few round trips, and nothing is read twice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from ray_imuckpt.errors import CheckpointNotFoundError, CorruptCheckpointError
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.lineage import Lineage
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.repository.overview import Overview
from ray_imuckpt.storage import Storage


def survey(storage: Storage, beside: Callable[[], None] = lambda: None) -> Overview:
    """Return what a run needs to know of its directory when it starts.

    Args:
        storage: The run directory.
        beside: Called once the directory was listed, also if that fails, at the same time as
            manifests are read: a store whose listing changes meanwhile may contradict itself.

    Raises:
        StorageError: The directory cannot be listed, or is itself a checkpoint.
        UnsupportedFormatError: A newer release wrote the record of branches.
    """
    catalog = Catalog(storage)
    try:
        listed = catalog.listed()
        lineage = _sound(catalog, listed.record)
    except Exception:
        beside()
        raise
    epochs = listed.epochs
    if lineage is None:  # then every manifest has to tell
        return replace(listed, manifests=_understood(storage, catalog, epochs, beside))
    first = {epoch for epoch in epochs if epoch in lineage.abandoned} | {*epochs[-1:]}
    manifests = _understood(storage, catalog, first, beside)
    if any(lineage.is_behind(manifests[epoch]) for epoch in epochs[-1:] if epoch in manifests):
        manifests |= _understood(storage, catalog, [e for e in epochs if e not in first])
    return replace(listed, manifests=manifests)


def _sound(catalog: Catalog, record: bytes | None) -> Lineage | None:
    """Return what a record says, ``None`` where it is damaged."""
    try:
        return catalog.recorded(record)
    except CorruptCheckpointError:
        return None


def _understood(
    storage: Storage, catalog: Catalog, epochs: Iterable[int], *beside: Callable[[], None]
) -> dict[int, Manifest]:
    """Return the manifests that are there and can be understood, asked for at once."""
    manifests: dict[int, Manifest] = {}

    def read(epoch: int) -> None:
        with contextlib.suppress(CheckpointNotFoundError):
            manifest = catalog.seen(epoch)
            if manifest is not None:
                manifests[epoch] = manifest

    reads: list[Callable[[], None]] = [partial(read, epoch) for epoch in epochs]
    storage.together([*beside, *reads])
    return manifests
