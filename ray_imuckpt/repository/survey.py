"""The survey of a run directory when a run starts: few round trips, and nothing is read twice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from ray_imuckpt.errors import CheckpointNotFoundError, CorruptCheckpointError
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.repository.overview import Overview
from ray_imuckpt.storage import Storage


def survey(storage: Storage, beside: Callable[[], None] = lambda: None) -> Overview:
    """Return what a run needs to know of its directory when it starts.

    Args:
        storage: The run directory.
        beside: Called at the same time as the first requests are made.

    Raises:
        StorageError: The directory cannot be listed, or is itself a checkpoint.
        UnsupportedFormatError: A newer release wrote the record of branches.
    """
    catalog = Catalog(storage)
    listed = catalog.listed([beside])
    epochs = listed.epochs
    try:
        lineage = catalog.recorded(listed.record)
    except CorruptCheckpointError:  # then every manifest has to tell
        return replace(listed, manifests=_understood(storage, catalog, epochs))
    first = {epoch for epoch in epochs if epoch in lineage.abandoned} | {*epochs[-1:]}
    manifests = _understood(storage, catalog, first)
    if any(lineage.is_behind(manifests[epoch]) for epoch in epochs[-1:] if epoch in manifests):
        manifests |= _understood(storage, catalog, [e for e in epochs if e not in first])
    return replace(listed, manifests=manifests)


def _understood(storage: Storage, catalog: Catalog, epochs: Iterable[int]) -> dict[int, Manifest]:
    """Return the manifests that are there and can be understood, asked for at once."""
    manifests: dict[int, Manifest] = {}

    def read(epoch: int) -> None:
        with contextlib.suppress(CheckpointNotFoundError):
            manifest = catalog.seen(epoch)
            if manifest is not None:
                manifests[epoch] = manifest

    storage.together([partial(read, epoch) for epoch in epochs])
    return manifests
