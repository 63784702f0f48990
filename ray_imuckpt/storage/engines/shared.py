"""Engines that a process has made, for whoever asks for the same again. Touches os.

Connections are dear: each begins with two round trips, three under TLS. They belong to the process,
not to a run, as fsspec's own file systems do.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from ray_imuckpt.storage.engines.obstore_engine import ObstoreEngine

_MOST = 8  # engines; the one that was not asked for the longest goes first
_READ = ("AWS_", "AZURE_", "GOOGLE_")  # what stores' clients read in the environment begins so

_ENGINES: OrderedDict[str, ObstoreEngine] = OrderedDict()
_LOCK = threading.Lock()
_OF_PARENT = False


def shared(
    scheme: str,
    options: Mapping[str, Any],
    make: Callable[[], ObstoreEngine],
) -> ObstoreEngine:
    """Return the engine for a scheme and options, made if there is none yet.

    Args:
        scheme: Of the URL.
        options: As the user gave them; their digest is kept, not they.
        make: Makes it.
    """
    key = _digest(scheme, options)
    with _LOCK:
        if key not in _ENGINES:
            _ENGINES[key] = make()
        _ENGINES.move_to_end(key)
        while len(_ENGINES) > _MOST:
            _ENGINES.popitem(last=False)
        return _ENGINES[key]


def _digest(scheme: str, options: Mapping[str, Any]) -> str:
    read = sorted(item for item in os.environ.items() if item[0].startswith(_READ))
    text = repr((scheme, sorted(options.items()), read))
    return hashlib.sha256(text.encode()).hexdigest()


def of_parent() -> bool:
    """Return whether the process was forked from one that used obstore, which serves no fork."""
    return _OF_PARENT


def _forget() -> None:
    """Let go, in a process that was just forked, of connections that are the parent's."""
    global _LOCK, _OF_PARENT  # noqa: PLW0603 - a thread of the parent may hold it for ever
    _LOCK = threading.Lock()
    _OF_PARENT = _OF_PARENT or bool(_ENGINES)
    _ENGINES.clear()


os.register_at_fork(after_in_child=_forget)
