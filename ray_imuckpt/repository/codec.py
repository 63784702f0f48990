"""The state of a training run ↔ named parts of bytes. No I/O.

A part is one file. Which parts there are, and what each holds, is `docs/format-v1.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypedDict, TypeVar

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from ray_imuckpt import staging
from ray_imuckpt.encoding import tensors, tree
from ray_imuckpt.encoding.chunks import Chunks
from ray_imuckpt.encoding.tensors import Strides
from ray_imuckpt.errors import CorruptCheckpointError
from ray_imuckpt.state.model import ModelState
from ray_imuckpt.threads.parallel import uncollected

T = TypeVar("T")

MODEL = "model"
MODEL_FROZEN = "model_frozen"
OPTIMIZER = "optimizer"
STATE = "state"

_EXTRA = "imuckpt.extra"
_VERSIONS = "imuckpt.versions"
_TREE = "imuckpt.tree"


@dataclass(frozen=True)
class Part:
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
    """What rank 0 stores.

    Attributes:
        model: The model's state.
        optimizer: The optimizer's, or ``None`` when there is none.
        log: The training log.
        other: The user's values, those of `objects` being states.
        objects: The names in `other` whose values are states of objects.
        ranks: Each rank's own state, as `encode_rank` gave it, in rank order.
        classes: The names of the classes of `objects`.
    """

    model: ModelState
    optimizer: dict[str, Any] | None
    log: Any
    other: Mapping[str, Any]
    objects: Iterable[str]
    ranks: list[bytes]
    classes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DecodedState:
    """The ``state`` part."""

    log: Any
    other: dict[str, Any]
    objects: frozenset[str]
    ranks: list[Any]
    classes: dict[str, str]
    optimizer: Any = field(repr=False)


@dataclass(frozen=True)
class _Trees:
    """The ``state`` part as it is stored."""

    log: Any
    other: dict[str, Any]
    objects: list[str]
    ranks: list[Any]
    optimizer: Any
    classes: dict[str, str] = field(default_factory=dict)  # older checkpoints lack it


@dataclass(frozen=True)
class _Random:
    """A rank's generators, as far as it is not for them to tell what they take."""

    python: Any
    numpy: dict[str, Any] | tuple[Any, ...]  # the tuple in older checkpoints
    torch: Tensor
    cuda: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class _Rank:
    """A rank's own state."""

    random: _Random
    per_rank: dict[str, Any]
    classes: dict[str, str] = field(default_factory=dict)


class _Group(TypedDict):
    params: list[str | int]


_Optimizer = TypedDict(
    "_Optimizer", {"class": str, "param_groups": list[_Group], "state": dict[str | int, Any]}
)


def encode_rank(state: Mapping[str, Any], rank: int) -> bytes:
    """A rank's own state as bytes, to be sent to rank 0."""
    found: dict[str, torch.Tensor] = {}
    data = tree.encode(dict(state), found, f"ranks.{rank}")
    text = tree.dumps(data).decode("ascii")
    found = staging.in_place(found)
    views = tensors.encode(found, metadata={_TREE: text}, strides=tensors.strides_of(found))
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
        """Every tensor, under a name that is its own in the whole checkpoint."""
        return {f"{f.part}/{name}": t for f in self.files for name, t in f.tensors.items()}

    def holding(self, copies: Mapping[str, torch.Tensor]) -> Plan:
        """The same with other tensors of these names: the live ones are let go."""
        return Plan(
            tuple(
                replace(f, tensors={name: copies[f"{f.part}/{name}"] for name in f.tensors})
                for f in self.files
            ),
            self.trees,
        )


@uncollected
def plan(state: TrainingState) -> Plan:
    """What is to be stored; tensors are the live ones.

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
        "ranks": [_merge_rank(blob, state_tensors) for blob in state.ranks],
    }
    files = list(_model_files(state.model))
    for part, found in ((OPTIMIZER, optimizer_tensors), (STATE, state_tensors)):
        if found:
            files.append(TensorFile(part, found, strides=tensors.strides_of(found)))
    for file in files:
        tensors.check_names(file.tensors)
    return Plan(tuple(files), trees)


@uncollected
def layout(plan: Plan) -> list[Part]:
    """The files of a checkpoint. No tensor is copied (see `encoding.tensors.encode`)."""
    parts = []
    for file in plan.files:
        views = tensors.encode(file.tensors, file.aliases, file.metadata, file.strides)
        row = Chunks(views, owner=file.tensors)
        parts.append(Part(file.part, "safetensors", row, views[0][:]))
    return [*parts, Part(STATE, "json", Chunks([tree.dumps(plan.trees)]))]


def _model_files(model: ModelState) -> Iterable[TensorFile]:
    for part, frozen in ((MODEL, False), (MODEL_FROZEN, True)):
        mine = {n: t for n, t in model.tensors.items() if (n in model.frozen) == frozen}
        aliases = {n: target for n, target in model.aliases.items() if target in mine}
        metadata = {} if frozen else {_VERSIONS: tree.dumps(dict(model.versions)).decode("ascii")}
        if not frozen and model.extra:
            data = tree.encode(dict(model.extra), mine, _EXTRA)
            metadata[_EXTRA] = tree.dumps(data).decode("ascii")
        if mine or not frozen:
            yield TensorFile(part, mine, aliases, metadata, tensors.strides_of(mine))


def _merge_rank(blob: bytes, into: dict[str, torch.Tensor]) -> Any:
    header = tensors.parse_header(blob, len(blob), "a rank")
    into.update({name: tensors.tensor_at(blob, info) for name, info in header.tensors.items()})
    return tree.loads(header.metadata[_TREE])


def decode_model(
    found: Mapping[str, T], metadata: Mapping[str, str]
) -> tuple[dict[str, T], dict[str, Any]]:
    """The ``model`` part's tensors, or what stands for them, and its extra state."""
    if _EXTRA not in metadata:
        return dict(found), {}
    extra = tree.decode_dict(tree.loads(metadata[_EXTRA]), found)
    return {n: t for n, t in found.items() if not n.startswith(_EXTRA)}, extra


def decode_versions(metadata: Mapping[str, str]) -> dict[str, int] | None:
    """The versions of the model's modules; ``None`` in a checkpoint that does not hold them."""
    if _VERSIONS not in metadata:
        return None
    versions: dict[str, int] = tree.loads(metadata[_VERSIONS])
    _check(versions, dict[str, int], "the model's file")
    return versions


def decode_state(text: bytes, found: Mapping[str, torch.Tensor], url: str) -> DecodedState:
    """The ``state`` part, the optimizer's tree still undecoded.

    Each tensor must have memory of its own: in the file a byte tensor may lie at any address, and
    torch crashes the process when it is given the state of a generator at an odd one.
    """
    trees: _Trees = _check(tree.loads(text), _Trees, url)
    fields = {"log": trees.log, "other": trees.other, "ranks": trees.ranks}
    decoded = tree.decode(fields, found)  # at once: no stored array is referred to twice
    _check(decoded["other"], dict[str, Any], url)
    _check(decoded["ranks"], Annotated[list[_Rank], Meta(min_length=1)], url)
    return DecodedState(
        **decoded,
        objects=frozenset(trees.objects),
        classes=trees.classes,
        optimizer=trees.optimizer,
    )


def decode_optimizer(data: tree.JSON, found: Mapping[str, Any], url: str) -> dict[str, Any] | None:
    """Return the optimizer's state; its tensors are those in `found`, or what stands for them."""
    if data is None:
        return None
    decoded = tree.decode_dict(data, found)
    _check(decoded, _Optimizer, url)
    return decoded


def _check(data: Any, kind: Any, url: str) -> Any:
    """The data, if its types are as said."""
    try:
        return msgspec.convert(data, kind)
    except ValueError as error:  # msgspec's own among them
        raise CorruptCheckpointError(
            f"A tree has a wrong or missing field: {error}.", url=url
        ) from error
