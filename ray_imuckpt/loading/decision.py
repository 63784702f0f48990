"""The decision what a run continues from, and what it can be between. Values, sent as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple

from ray_imuckpt.options import Best, Opening
from ray_imuckpt.repository.manifest import Manifest
from ray_imuckpt.storage import Storage


class Offer(NamedTuple):
    """A checkpoint in any directory that the surroundings, or the user, hand over.

    Attributes:
        directory: The checkpoint's, or that of a pointer to it.
        opening: How the directory that a pointer names is opened.
    """

    directory: Storage
    opening: Opening = Opening()


Choice = str | int | Best | Offer
"""What a user wants to continue from: `LAST`, `NONE`, an epoch, the best one, or that one."""


@dataclass(frozen=True)
class Decision:
    """A decision what the gang continues from.

    Attributes:
        manifest: Of the checkpoint; ``None`` to begin from scratch.
        foreign: Whether it lies in another directory than the run's.
        offered: Whether it is the one that the surroundings offer, which lies so.
        exact: Whether it was asked for by its number or its place, so that no other one will do.
    """

    manifest: Manifest | None = None
    foreign: bool = False
    offered: bool = False
    exact: bool = False

    def to_bytes(self) -> bytes:
        """Return the decision as JSON."""
        manifest = None if self.manifest is None else self.manifest.to_bytes().decode("ascii")
        flags = {"foreign": self.foreign, "offered": self.offered, "exact": self.exact}
        return json.dumps({"manifest": manifest, **flags}).encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes, url: str) -> Decision:
        """Return the decision that rank 0 sent; `url` is where its checkpoint lies, for errors."""
        flags = json.loads(data)
        manifest = flags.pop("manifest")
        if manifest is not None:
            manifest = Manifest.from_bytes(manifest.encode("ascii"), url)
        return cls(manifest, **flags)
