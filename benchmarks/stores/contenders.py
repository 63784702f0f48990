"""Who saves to an object store: ours on each engine, the peers, and the engine alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow.fs
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

from benchmarks.stores.raw import Raw
from benchmarks.stores.transports import Arrow, Connector, Obstore, S3fs, arrow_filesystem
from ray_imuckpt import Checkpointer

RAW = "obstore alone, no checksums (limit)"
ARROW = "pyarrow alone, no checksums"
S3FS_ALONE = "s3fs alone, no checksums"
CONNECTOR = "s3torchconnector alone, no checksums"
OBSTORE = "ray_imuckpt"
BLOCKING = "ray_imuckpt, blocking"
S3FS = "ray_imuckpt, by s3fs"
RAY = "Ray's recipe"
DCP = "dcp, fsspec writer"


@dataclass(frozen=True)
class Surroundings:
    """What a contender works in.

    Attributes:
        options: Of s3fs, for the store.
        bucket: The store's.
        scratch: A local directory.
    """

    options: Mapping[str, Any]
    bucket: str
    scratch: Path


class Contender(Protocol):
    """Saves a model and its optimizer to a store, and restores them in place."""

    def begin(self, directory: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take the objects that are saved from now on, into a directory of the bucket."""

    def save(self) -> None:
        """Save until nothing is left to do."""

    def restore(self) -> None:
        """Restore what was saved last, as a process does that has just begun."""

    def restore_model(self) -> None:
        """Restore the model alone, as `restore`."""


class Ours:
    """`Checkpointer`.

    Args:
        surroundings: The store.
        policy: More arguments of `Checkpointer`.
    """

    def __init__(self, surroundings: Surroundings, **policy: Any) -> None:
        self._surroundings, self._policy = surroundings, policy

    def begin(self, directory: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Implement `Contender.begin`: a run begins."""
        self._url = f"s3://{self._surroundings.bucket}/{directory}"
        self._model, self._optimizer, self._epoch = model, optimizer, 0
        self._checkpointer = self._new()
        self._checkpointer.start(model, optimizer, continue_from="none")

    def _new(self) -> Checkpointer:
        options = dict(self._surroundings.options)
        return Checkpointer(self._url, storage_options=options, progress=False, **self._policy)

    def save(self) -> None:
        """Implement `Contender.save`."""
        self._epoch += 1
        self._checkpointer.checkpoint(self._epoch, model=self._model, optimizer=self._optimizer)
        self._checkpointer.wait()

    def restore(self) -> None:
        """Implement `Contender.restore`."""
        self._new().start(self._model, self._optimizer)

    def restore_model(self) -> None:
        """Implement `Contender.restore_model`."""
        self._new().load(self._model, self._epoch)


class RaysRecipe:
    """`torch.save` to a temporary directory, then what Ray Train does with it."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._scratch, self._bucket = surroundings.scratch, surroundings.bucket
        self._filesystem = arrow_filesystem(surroundings.options)

    def begin(self, directory: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Implement `Contender.begin`."""
        self._path = f"{self._bucket}/{directory}"
        self._model, self._optimizer = model, optimizer

    def save(self) -> None:
        """Implement `Contender.save`, with the arguments of Ray's own upload."""
        state = {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}
        with tempfile.TemporaryDirectory(dir=self._scratch) as local:
            torch.save(state, Path(local, "state.pt"))
            self._filesystem.create_dir(self._path)
            pyarrow.fs.copy_files(
                local,
                self._path,
                destination_filesystem=self._filesystem,
                chunk_size=64 * 1024 * 1024,
                use_threads=False,  # Ray's, since threads and pyarrow's uploads do not go together
            )

    def _read(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=self._scratch) as local:
            pyarrow.fs.copy_files(
                self._path, local, source_filesystem=self._filesystem, chunk_size=64 * 1024 * 1024
            )
            state: dict[str, Any] = torch.load(Path(local, "state.pt"), weights_only=True)
            return state

    def restore(self) -> None:
        """Implement `Contender.restore`."""
        state = self._read()
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])

    def restore_model(self) -> None:
        """Implement `Contender.restore_model`: the whole file all the same."""
        self._model.load_state_dict(self._read()["model"])


class Dcp:
    """`torch.distributed.checkpoint` with its writer and reader for fsspec."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._options, self._bucket = dict(surroundings.options), surroundings.bucket

    def begin(self, directory: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Implement `Contender.begin`."""
        self._url = f"s3://{self._bucket}/{directory}"
        self._model, self._optimizer = model, optimizer

    def _state(self) -> dict[str, Any]:
        return {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}

    def save(self) -> None:
        """Implement `Contender.save`."""
        writer = FsspecWriter(self._url, **self._options)
        dcp.save(self._state(), storage_writer=writer, no_dist=True)

    def restore(self) -> None:
        """Implement `Contender.restore`."""
        reader = FsspecReader(self._url, **self._options)
        dcp.load(self._state(), storage_reader=reader, no_dist=True)

    def restore_model(self) -> None:
        """Implement `Contender.restore_model`."""
        reader = FsspecReader(self._url, **self._options)
        dcp.load({"model": self._model.state_dict()}, storage_reader=reader, no_dist=True)


def _by_s3fs(surroundings: Surroundings) -> Contender:
    own = surroundings.options.get("config_kwargs", {})
    config = {**own, "user_agent_extra": "benchmarks"}  # which obstore has no option for
    return Ours(replace(surroundings, options={**surroundings.options, "config_kwargs": config}))


CONTENDERS: dict[str, Callable[[Surroundings], Contender]] = {
    RAW: lambda s: Raw(Obstore(s.options, s.bucket)),
    OBSTORE: Ours,
    BLOCKING: lambda s: Ours(s, blocking=True),
    S3FS: _by_s3fs,
    RAY: RaysRecipe,
    DCP: Dcp,
    ARROW: lambda s: Raw(Arrow(s.options, s.bucket)),
    S3FS_ALONE: lambda s: Raw(S3fs(s.options, s.bucket)),
    CONNECTOR: lambda s: Raw(Connector(s.options, s.bucket)),
}
"""By the name that the tables show."""

PEERS = (RAW, OBSTORE, BLOCKING, S3FS, RAY, DCP)
CLIENTS = (RAW, ARROW, S3FS_ALONE, CONNECTOR)
