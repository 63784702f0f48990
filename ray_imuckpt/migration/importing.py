"""Another program's checkpoint, written as one of ours."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ray_imuckpt import arguments, staging, units
from ray_imuckpt.directory import CheckpointDirectory
from ray_imuckpt.encoding import tree
from ray_imuckpt.encoding.tensors import Piece, check_storable, first_of_tied
from ray_imuckpt.errors import UnsupportedStateError, located, public
from ray_imuckpt.migration.content import Choices, sorted_out
from ray_imuckpt.migration.remainder import Content
from ray_imuckpt.migration.sources import LIGHTNING, TORCH, open_source
from ray_imuckpt.migration.trees import TensorInPieces
from ray_imuckpt.repository import codec, paths
from ray_imuckpt.repository.manifest import FileEntry, Manifest
from ray_imuckpt.repository.rank_state import RankState
from ray_imuckpt.repository.run import Run
from ray_imuckpt.saving import job
from ray_imuckpt.saving.collect import Label
from ray_imuckpt.saving.files import Files
from ray_imuckpt.state.model import ModelState, apart
from ray_imuckpt.state.pieces import Share
from ray_imuckpt.storage import Storage, open_storage
from ray_imuckpt.storage.names import join

# How much larger than the source a checkpoint may become: views that overlap are written whole.
_MOST_TIMES, _MOST_MORE = 8, 1024**3

# As a rank state: nothing of one is known.
_NOTHING: dict[str, Any] = {"random": None, "per_rank": {}, "classes": {}}


@dataclass(frozen=True)
class Imported:
    """A checkpoint that was imported.

    Attributes:
        url: The checkpoint.
        epoch: Its epoch.
        kind: Whose it was: ``torch.save``, ``Lightning``, ``DCP`` or ``safetensors``.
        tensors: How many tensors the model has, tied ones once for each name.
        size: Bytes of all files.
        optimizer: Of how many parameters the optimizer's state was brought along; ``None`` where
            there is none.
        step: The number of steps, if the source says it.
        metrics: Numbers that the source has.
        other: The names of everything else that was brought along.
        left: What was not, to the reason.
    """

    url: str
    epoch: int
    kind: str
    tensors: int
    size: int
    optimizer: int | None
    step: int | None
    metrics: Mapping[str, float]
    other: tuple[str, ...]
    left: Mapping[str, str]


@dataclass
class _NewRun(Run):
    """The run of an import: it replaces nothing."""

    def may_replace(self, manifest: Manifest) -> bool:
        """Return that it may not."""
        del manifest
        return False


@public
def import_checkpoint(
    source: str | os.PathLike[str],
    dir: str | os.PathLike[str],  # noqa: A002 - as in Checkpointer
    *,
    epoch: int | None = None,
    model_key: str | None = None,
    optimizer_key: str | None = None,
    parameters: Sequence[str] | None = None,
    strip: str = "",
    storage_options: Mapping[str, Any] | None = None,
) -> Imported:
    """Write another program's checkpoint as one of ours, which `start` and `load` take.

    No code of the source's runs: its pickles are read by restricted unpicklers, which refuse
    whatever is no tensor and no plain value. Its tensors are mapped into memory and written chunk
    by chunk. It has no random state that is known: `start` leaves the generators as they are.

    Args:
        source: A local path: a file of ``torch.save`` or of Lightning, or a directory that holds
            one (as Ray's do); a directory of ``torch.distributed.checkpoint``; or safetensors.
        dir: The run directory, as for `Checkpointer`.
        epoch: Its epoch here; left out: the one that the source says.
        model_key: Where the model's state is, ``"app.model"`` for one in another; left out: it is
            looked for under the usual names.
        optimizer_key: The same of the optimizer's.
        parameters: The names of the optimizer's parameters in its order, where the source numbers
            them and has several groups, or not all of the model's:
            ``[n for n, p in model.named_parameters() if p.requires_grad]``.
        strip: What the names of the model's tensors begin with and shall not, ``"model."`` for
            what a ``LightningModule`` has as ``self.model``; others are left.
        storage_options: As for `Checkpointer`.

    Returns:
        What was brought along, and what was not.

    Raises:
        UnsupportedStateError: To read it would run code, or it holds no model.
        CorruptCheckpointError, UnsupportedFormatError: It is damaged, or of no such program.
        StateMismatchError: A key that was named is not there.
        CheckpointNotFoundError: The source is not there.
        StorageError: One of the two places cannot be read or written.
        ValueError: Nothing says which epoch it is, or there is a checkpoint of that epoch, which is
            left as it is.
    """
    choices = Choices(model_key, optimizer_key, parameters, strip)
    directory = CheckpointDirectory(dir, storage_options)
    storage = open_storage(str(directory.dir), storage_options or {})
    return _imported(os.fspath(source), directory, storage, epoch, choices)


@dataclass
class _Import:
    """One import.

    Attributes:
        storage: The run directory.
        content: What was found in the source.
        epoch: Of the checkpoint.
        source: The file that the tensors are views of; ``None`` where each has bytes of its own.
        pieced: Stand-ins of tensors in pieces, by their ``id()``; they have no memory of their own.
    """

    storage: Storage
    content: Content
    epoch: int
    source: str | None
    pieced: dict[int, tuple[torch.Tensor, TensorInPieces]] = field(default_factory=dict)

    def write(self) -> Manifest:
        """Write and commit it."""
        contents = self._contents()
        run = _NewRun(uuid.uuid4().hex, None, branch_begun=True)
        label = Label(self.epoch, self.content.step, self.content.metrics or None)
        several = max((len(whole.pieces) for _, whole in self.pieced.values()), default=1)
        for rank in range(several):  # as many as have written it, or more
            contents.put_rank(RankState(dict(_NOTHING), rank))
        save_id = paths.new_save_id()
        files = [
            Files(self.storage, self.epoch, save_id, rank, together=several > 1)
            for rank in range(several)
        ]

        def others() -> list[FileEntry]:
            """Write the files of all further pieces, as the other ranks of a gang do."""
            entries: list[FileEntry] = []
            for one in files[1:]:
                parts = codec.layout(self._further(contents, one.rank))
                written = one.write(parts, run)
                one.check_complete(parts, written)
                entries += written
            return entries

        plan = contents.plan(self._first if self.pieced else None)
        if self.source is not None:
            _check_size([*plan.tensors().values()], self.source)
        parts = codec.layout(plan.holding(staging.in_place(plan.tensors())))
        draft = job.draft_manifest(run, label, several, save_id)
        return job.commit_parts(files[0], draft, parts, run, others)

    def _contents(self) -> codec.Contents:
        content = self.content
        named = {name: self._stand_in(value) for name, value in content.model.items()}
        for name, tensor in named.items():
            check_storable(tensor, f"model[{name!r}]")
        first = first_of_tied(named, apart)
        tensors = {name: named[name] for name in named if first[name] == name}
        aliases = {name: other for name, other in first.items() if name != other}
        state = ModelState(tensors, aliases, extra=content.extra, versions=content.versions)
        contents = codec.Contents(state, leads=True)
        contents.put_optimizer(self._stand_in(content.optimizer))
        for name in [*content.other]:
            value = self._stand_in(content.other[name])
            if self._is_storable(name, value):
                contents.put_other(name, value)
        contents.put_objects(content.objects & content.other.keys(), {})
        contents.put_log(content.log)
        return contents

    def _is_storable(self, name: str, value: Any) -> bool:
        """Return whether a value can be stored; what cannot is left out, and told."""
        try:
            tree.encode(value, {}, name)
        except UnsupportedStateError as error:
            del self.content.other[name]
            self.content.left[name] = error.message
            return False
        return True

    def _stand_in(self, value: Any) -> Any:
        """Return a value with a stand-in for each tensor in pieces: its shape, and no memory."""
        if isinstance(value, TensorInPieces):
            stand_in = torch.empty((), dtype=value.dtype).expand(value.shape)
            self.pieced[id(stand_in)] = stand_in, value
            return stand_in
        if type(value) is dict:
            return {key: self._stand_in(item) for key, item in value.items()}
        if type(value) in {list, tuple}:
            return type(value)(map(self._stand_in, value))
        return value

    def _first(self, key: str, tensor: torch.Tensor) -> Share:
        del key
        return self._share(tensor, 0) or Share(tensor, None)

    def _share(self, tensor: torch.Tensor, rank: int) -> Share | None:
        """Return the piece of a tensor that goes into the file of that number, if there is one."""
        _, whole = self.pieced.get(id(tensor), (None, None))
        if whole is None or rank >= len(whole.pieces):
            return None
        offset, local = whole.pieces[rank]
        return Share(local, Piece(offset, whole.shape))

    def _further(self, contents: codec.Contents, rank: int) -> codec.Plan:
        """Return what goes into the files of that number: pieces, and no tree."""
        files = []
        for part, tensors in contents.tensors.items():
            shares = {name: self._share(tensor, rank) for name, tensor in tensors.items()}
            held = {name: share for name, share in shares.items() if share is not None}
            if held:
                local = staging.in_place({name: share.local for name, share in held.items()})
                pieces = {n: share.piece for n, share in held.items() if share.piece is not None}
                files.append(codec.TensorFile(part, local, pieces=pieces))
        return codec.Plan(tuple(files), {"ranks": {}})


def _check_size(tensors: Sequence[torch.Tensor], source: str) -> None:
    """Check that what is written is not far more than what was read.

    A tensor of torch's may repeat its bytes (`torch.Tensor.expand`), and many may be views of the
    same: a file of a kilobyte could fill any disk.
    """
    held, written = os.path.getsize(source), sum(tensor.nbytes for tensor in tensors)
    if written > _MOST_TIMES * held + _MOST_MORE:
        raise UnsupportedStateError(
            f"Its tensors repeat their bytes: a file of {units.size(held)} would become "
            f"{units.size(written)}.",
            hint="Where you trust it, load it with the program that wrote it, and save what you "
            "need of it.",
        )


def _imported(
    path: str,
    directory: CheckpointDirectory,
    storage: Storage,
    epoch: int | None,
    choices: Choices,
) -> Imported:
    with located(path):
        source = open_source(path)
        content = sorted_out(source, choices)
    chosen = content.epoch if epoch is None else arguments.epoch(epoch)
    if chosen is None:
        raise ValueError(
            f"{path} does not say which epoch it is of: give one (--epoch N, epoch=N)."
        )
    url = join(storage.url, paths.checkpoint_name(chosen))
    storage.check_writable()()
    if chosen in directory.list_existing_checkpoint_indices():
        raise ValueError(
            f"{url} is there, and nothing is written over it: give another epoch or directory."
        )
    views_of = source.path if source.kind in (TORCH, LIGHTNING) else None
    manifest = _Import(storage, content, chosen, views_of).write()
    return Imported(
        url=url,
        epoch=chosen,
        kind=source.kind,
        tensors=len(content.model),
        size=sum(entry.size for entry in manifest.files),
        optimizer=None if content.optimizer is None else len(content.optimizer["state"]),
        step=content.step,
        metrics=content.metrics,
        other=tuple(content.other),
        left=content.left,
    )
