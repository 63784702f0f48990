"""The registry: in which surroundings this process runs. Imports no Ray by itself.

A module that knows Ray is imported in a process that has loaded that part of Ray already, and in no
other: ``import ray_imuckpt`` stays light, and a process without Ray never pays. To look into
`sys.modules` is enough, since whatever runs a training function for Ray has loaded that part.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

from ray_imuckpt.runtime import script, torchrun
from ray_imuckpt.runtime.session import Session, Surroundings
from ray_imuckpt.storage import Storage


def _ray_tune() -> Surroundings:
    from ray_imuckpt.runtime import ray_tune

    return ray_tune


def _ray_train() -> Surroundings:
    from ray_imuckpt.runtime import ray_train

    return ray_train


def _ray_local() -> Surroundings:
    from ray_imuckpt.runtime import ray_local

    return ray_local


class _Entry(NamedTuple):
    """One kind of surroundings.

    Attributes:
        module: What every process that is run so has loaded, ``None`` for nothing in particular.
        surroundings: Import, and return, what knows them.
    """

    module: str | None
    surroundings: Callable[[], Surroundings]


# The first that is present counts: Ray starts its processes itself, so that it goes before the
# variables that a torchrun may have left, and every process is a script.
_REGISTRY = (
    _Entry("ray.tune", _ray_tune),
    _Entry("ray.train", _ray_train),
    _Entry("ray.train", _ray_local),
    _Entry(None, lambda: torchrun),
    _Entry(None, lambda: script),
)


def session(timeout: timedelta, before: Session | None = None) -> Session:
    """Return the session of this process; a collective in a gang, where it is a new one.

    Args:
        timeout: Of each meeting of the ranks; see `ray_imuckpt.gang.current`.
        before: The session of the last call, which is returned while it holds. A script may become
            Ray's local mode, a process may run trial after trial, a gang may be made anew.

    Raises:
        ImuckptError: A launcher started several processes, which cannot find each other.
        GangBrokenError: Not all ranks came.
    """
    surroundings = _surroundings()
    if before is not None and before.surroundings == surroundings.NAME and before.active():
        return before
    return surroundings.session(timeout)


def run_directory() -> Storage | None:
    """Return the directory of the run that this process is part of, if it has one."""
    return _surroundings().run_directory()


def _surroundings() -> Surroundings:
    for module, load in _REGISTRY:
        if module is None or module in sys.modules:
            surroundings = load()
            if surroundings.present():
                return surroundings
    return script
