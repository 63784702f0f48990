"""When to lower the learning rate, and along which schedule. Touches torch only.

A schedule is any callable from a state, an int counted from 1, to a learning rate. It has no
memory: the `PlateauDetector` knows the state it is at, so that is all there is to save.
"""

from __future__ import annotations

from ray_imuckpt.plateau.detector import PlateauDetector
from ray_imuckpt.plateau.schedules import (
    CosineAnnealing,
    Exponential,
    Polynomial,
    Schedule,
    Sequence,
    Step,
)

__all__ = [
    "CosineAnnealing",
    "Exponential",
    "PlateauDetector",
    "Polynomial",
    "Schedule",
    "Sequence",
    "Step",
]
