"""Engines in a process that was forked: their connections and threads are its parent's. Touches os.

obstore's threads exist once in a process, and not in one that is forked after they have started:
whatever it is asked there, it waits for ever. fsspec begins anew in such a process.
"""

from __future__ import annotations

import os

from fsspec.asyn import AsyncFileSystem

from ray_imuckpt.storage.engines.fsspec_engine import FsspecEngine
from ray_imuckpt.storage.engines.obstore_engine import ObstoreEngine
from ray_imuckpt.storage.engines.protocol import Engine


class Held:
    """An engine that is held by this process, or was by one of which this is a fork.

    Args:
        engine: Of this process.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._process = os.getpid()

    @property
    def engine(self) -> Engine:
        """Return the engine, after a fork another one that reaches the same.

        Raises:
            StorageError: obstore served the parent, and no file system of fsspec is installed.
            OSError: An engine that was made by itself cannot be made again.
        """
        if self._process != os.getpid():
            self._engine, self._process = _made_again(self._engine), os.getpid()
        return self._engine


def _made_again(engine: Engine) -> Engine:
    if isinstance(engine, ObstoreEngine):
        if engine.fallback is None:
            raise OSError("obstore does not serve a process that was forked: open it anew there")
        made: Engine = engine.fallback()
        return made
    if isinstance(engine, FsspecEngine) and isinstance(engine.filesystem, AsyncFileSystem):
        old = engine.filesystem
        new = type(old)(*old.storage_args, **old.storage_options)
        if hasattr(old, "retries"):
            new.retries = old.retries
        return FsspecEngine(new, engine.budget)
    return engine
