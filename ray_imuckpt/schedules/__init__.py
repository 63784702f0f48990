"""Learning rates: ready schedules, and the detector that moves along one. Touches torch only.

>>> from ray_imuckpt import PlateauDetector
>>> from ray_imuckpt.schedules import Exponential
>>> plateau = PlateauDetector(Exponential(1e-3, 0.7), patience=10)

A schedule is any callable from a state, an int counted from 1, to a learning rate. It has no
memory: the `PlateauDetector` knows the state it is at, so that is all there is to save.
"""

from __future__ import annotations

from ray_imuckpt.schedules.curves import (
    CosineAnnealing,
    Exponential,
    Polynomial,
    Schedule,
    Sequence,
    Step,
)
from ray_imuckpt.schedules.detector import PlateauDetector

__all__ = [
    "CosineAnnealing",
    "Exponential",
    "PlateauDetector",
    "Polynomial",
    "Schedule",
    "Sequence",
    "Step",
]
