"""The metrics that a manifest states. Values, no I/O.

Metrics that are plain numbers and words are stored as what they are; torch, which takes seconds to
import, is asked for the others only.
"""

from __future__ import annotations

import math
from typing import Any

from ray_imuckpt.repository.manifest import Manifest

_TAG = "$"  # of a dict that stands for something else, see `encoding.tree`


def metrics_of(manifest: Manifest) -> dict[str, Any]:
    """Return the metrics that were given with a checkpoint.

    Raises:
        CorruptCheckpointError: They are no tree.
    """
    if _TAG not in manifest.metrics and all(map(_is_itself, manifest.metrics.values())):
        return dict(manifest.metrics)
    from ray_imuckpt.encoding import tree

    return tree.decode_dict(manifest.metrics, {})


def number_of(manifest: Manifest, metric: str) -> float | None:
    """Return a checkpoint's number for a metric, ``None`` where it has none; errors as above."""
    value = metrics_of(manifest).get(metric)
    if isinstance(value, int) or (isinstance(value, float) and not math.isnan(value)):
        return value
    return None


def _is_itself(value: Any) -> bool:
    return not isinstance(value, (dict, list))
