"""The metrics that a manifest states. Values, no I/O.

Metrics that are plain numbers and words are read here, those that are not finite among them; for
the others `encoding.tree` is asked, and with it torch, which takes seconds to import, comes in.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from ray_imuckpt.repository.manifest import Manifest

_TAG = "$"  # of a dict that stands for something else, see `encoding.tree`


def metrics_of(manifest: Manifest) -> dict[str, Any]:
    """Return the metrics that were given with a checkpoint.

    Raises:
        CorruptCheckpointError: They are no tree.
    """
    if _TAG not in manifest.metrics:
        plain = {name: _plain(value) for name, value in manifest.metrics.items()}
        if not any(isinstance(value, (dict, list)) for value in plain.values()):
            return plain
    from ray_imuckpt.encoding import tree

    return tree.decode_dict(manifest.metrics, {})


def number_of(manifest: Manifest, metric: str) -> float | None:
    """Return a checkpoint's number for a metric, ``None`` where it has none; errors as above."""
    value = metrics_of(manifest).get(metric)
    if isinstance(value, int) or (isinstance(value, float) and not math.isnan(value)):
        return value
    return None


def _plain(value: Any) -> Any:
    """Return the number for a tree's word for one that is not finite; all others as they are."""
    if isinstance(value, dict) and value.keys() == {_TAG, "v"} and value[_TAG] == "float":
        try:
            return struct.unpack(">d", bytes.fromhex(value["v"]))[0]
        except (TypeError, ValueError, struct.error):  # damage, which the tree tells
            return value
    return value
