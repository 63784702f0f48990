"""An overview of a run directory: what a run that starts has read of it. A value, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ray_imuckpt.repository.manifest import Manifest


@dataclass(frozen=True)
class Overview:
    """The state of a run directory when it was surveyed; it may have changed since.

    Attributes:
        record: The record of branches, ``None`` where there is none.
        epochs: Those that were committed, ascending.
        manifests: The manifests that were read, by epoch, as far as they can be understood: the
            latest one, those that the record lists as left behind, and all where the record does
            not tell of the current branch.
    """

    record: bytes | None
    epochs: tuple[int, ...]
    manifests: Mapping[int, Manifest] = field(default_factory=dict)
