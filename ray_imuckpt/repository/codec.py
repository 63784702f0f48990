"""The state of a training run as files of bytes; `decoding` is the way back. No I/O.

Which parts there are, and what each holds, is `docs/format-v1.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ray_imuckpt import staging
from ray_imuckpt.encoding import tensors, tree
from ray_imuckpt.encoding.chunks import Chunks
from ray_imuckpt.encoding.tensors import Strides
from ray_imuckpt.state.model import ModelState
from ray_imuckpt.threads.parallel import uncollected

MODEL = "model"
MODEL_FROZEN = "model_frozen"
OPTIMIZER = "optimizer"
STATE = "state"

EXTRA = "imuckpt.extra"
VERSIONS = "imuckpt.versions"
_TREE = "imuckpt.tree"


@dataclass(frozen=True)
class EncodedFile:
    """One file to be written.

    Attributes:
        part: What it holds.
        suffix: The end of its name.
        chunks: Its bytes.
        header: Those of them that come before the first tensor.
    """

    part: str
    suffix: str
    chunks: Chunks
    header: bytes | memoryview = b""


@dataclass(frozen=True)
class TrainingState:
    """The state that rank 0 stores.

    Attributes:
        model: The model's state.
        optimizer: The optimizer's, or ``None`` when there is none.
        log: The training log.
        other: The user's values, those of `objects` being states.
        objects: The names in `other` whose values are states of objects.
        ranks: The rank states, as `encode_rank` returned them, in rank order.
        classes: The names of the classes of `objects`.
    """

    model: ModelState
    optimizer: dict[str, Any] | None
    log: Any
    other: Mapping[str, Any]
    objects: Iterable[str]
    ranks: list[bytes]
    classes: Mapping[str, str] = field(default_factory=dict)


def encode_rank(state: Mapping[str, Any], rank: int) -> bytes:
    """Return a rank state as bytes, to be sent to rank 0."""
    stored: dict[str, torch.Tensor] = {}
    data = tree.encode(dict(state), stored, f"ranks.{rank}")
    text = tree.dumps(data).decode("ascii")
    stored = staging.in_place(stored)
    views = tensors.encode(stored, metadata={_TREE: text}, strides=tensors.strides_of(stored))
    return b"".join(view[:] for view in views)


@dataclass(frozen=True)
class TensorFile:
    """A file of tensors that is still to be laid out; `strides` are those of the live tensors."""

    part: str
    tensors: Mapping[str, torch.Tensor]
    aliases: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    strides: Mapping[str, Strides] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """All that a checkpoint will hold: trees that share nothing with live objects, and tensors."""

    files: tuple[TensorFile, ...]
    trees: tree.JSON

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return every tensor, under a name that is its own in the whole checkpoint."""
        return {f"{f.part}/{name}": t for f in self.files for name, t in f.tensors.items()}

    def holding(self, copies: Mapping[str, torch.Tensor]) -> Plan:
        """Return the same with other tensors of these names: the live ones are let go."""
        return Plan(
            tuple(
                replace(f, tensors={name: copies[f"{f.part}/{name}"] for name in f.tensors})
                for f in self.files
            ),
            self.trees,
        )


@uncollected
def plan(state: TrainingState) -> Plan:
    """Return what is to be stored; tensors are the live ones.

    Raises:
        UnsupportedStateError: Something cannot be stored; the message holds the path to it.
    """
    optimizer_tensors: dict[str, torch.Tensor] = {}
    state_tensors: dict[str, torch.Tensor] = {}
    trees = {
        "log": tree.encode_later(state.log, state_tensors, "log"),
        "other": {
            name: tree.encode_later(value, state_tensors, f"other.{name}")
            for name, value in state.other.items()
        },
        "objects": sorted(state.objects),
        "classes": dict(state.classes),
        "optimizer": tree.encode(state.optimizer, optimizer_tensors, "optimizer"),
        "ranks": {
            str(rank): _merge_rank(blob, state_tensors) for rank, blob in enumerate(state.ranks)
        },
    }
    files = list(_model_files(state.model))
    for part, found in ((OPTIMIZER, optimizer_tensors), (STATE, state_tensors)):
        if found:
            files.append(TensorFile(part, found, strides=tensors.strides_of(found)))
    for file in files:
        tensors.check_names(file.tensors)
    return Plan(tuple(files), trees)


@uncollected
def layout(plan: Plan) -> list[EncodedFile]:
    """Return the files of a checkpoint. No tensor is copied (see `encoding.tensors.encode`)."""
    parts = []
    for file in plan.files:
        views = tensors.encode(file.tensors, file.aliases, file.metadata, file.strides)
        row = Chunks(views, owner=file.tensors)
        parts.append(EncodedFile(file.part, "safetensors", row, views[0][:]))
    return [*parts, EncodedFile(STATE, "json", Chunks([tree.dumps(plan.trees)]))]


def _model_files(model: ModelState) -> Iterable[TensorFile]:
    for part, frozen in ((MODEL, False), (MODEL_FROZEN, True)):
        stored = {n: t for n, t in model.tensors.items() if (n in model.frozen) == frozen}
        aliases = {n: target for n, target in model.aliases.items() if target in stored}
        metadata = {} if frozen else {VERSIONS: tree.dumps(dict(model.versions)).decode("ascii")}
        if not frozen and model.extra:
            data = tree.encode(dict(model.extra), stored, EXTRA)
            metadata[EXTRA] = tree.dumps(data).decode("ascii")
        if stored or not frozen:
            yield TensorFile(part, stored, aliases, metadata, tensors.strides_of(stored))


def _merge_rank(blob: bytes, into: dict[str, torch.Tensor]) -> Any:
    header = tensors.parse_header(blob, len(blob), "a rank")
    into.update({name: tensors.tensor_at(blob, info) for name, info in header.tensors.items()})
    return tree.loads(header.metadata[_TREE])
