"""The state of a training run as files of bytes; `decoding` is the way back. No I/O.

Which parts there are, and what each holds, is `docs/format-v1.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ray_imuckpt.encoding import tensors, tree
from ray_imuckpt.encoding.chunks import Chunks
from ray_imuckpt.encoding.tensors import Piece, Strides, is_plain
from ray_imuckpt.repository.rank_state import TREE, Partition, RankState
from ray_imuckpt.state.model import ModelState
from ray_imuckpt.state.pieces import Share
from ray_imuckpt.state.sharding import check_part, holds_shards, is_sharded, part_here
from ray_imuckpt.threads.parallel import uncollected

MODEL = "model"
MODEL_FROZEN = "model_frozen"
OPTIMIZER = "optimizer"
STATE = "state"

EXTRA = "imuckpt.extra"
VERSIONS = "imuckpt.versions"


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
class TensorFile:
    """A file of tensors that is still to be laid out; `strides` are those of the live tensors."""

    part: str
    tensors: Mapping[str, torch.Tensor]
    aliases: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    strides: Mapping[str, Strides] = field(default_factory=dict)
    pieces: Mapping[str, Piece] = field(default_factory=dict)


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


Choose = Callable[[str, torch.Tensor], Share | None]
"""Says what of a tensor, by its name in the whole checkpoint, is written; ``None``: nothing."""


class Contents:
    """The contents of a checkpoint that a rank knows: trees, and the live tensors by part.

    Tensors may be sharded. Of what is the same on all ranks and cannot be shared out, rank 0's
    counts.

    Args:
        model: The model's state.
        leads: Whether this rank is rank 0.
    """

    def __init__(self, model: ModelState, *, leads: bool) -> None:
        self.model = model
        self.leads = leads
        self.ranks: dict[str, tree.JSON] = {}
        self.trees: dict[str, tree.JSON] = {"optimizer": None, "other": {}} if leads else {}
        trained = {n: t for n, t in model.tensors.items() if n not in model.frozen}
        frozen = {n: t for n, t in model.tensors.items() if n in model.frozen}
        self.tensors: dict[str, dict[str, torch.Tensor]] = {
            MODEL: trained, MODEL_FROZEN: frozen, OPTIMIZER: {}, STATE: {},
        }  # fmt: skip
        self.alone: dict[str, dict[str, torch.Tensor]] = {STATE: {}, OPTIMIZER: {}}
        self._sharded: dict[str, torch.Tensor] = {}  # of those in `STATE` alone
        self._pieces: dict[str, Piece] = {}
        self._metadata: dict[str, str] = {}
        if leads:
            self._metadata[VERSIONS] = tree.dumps(dict(model.versions)).decode("ascii")
        if model.extra and (leads or holds_shards(model.extra)):
            data = tree.encode(dict(model.extra), trained, EXTRA, check_part)
            if leads:
                self._metadata[EXTRA] = tree.dumps(data).decode("ascii")

    @property
    def plain_size(self) -> int:
        """Return the bytes of the tensors of `STATE` that are not sharded."""
        return sum(tensor.nbytes for tensor in self.tensors[STATE].values() if is_plain(tensor))

    def put_optimizer(self, state: Mapping[str, Any] | None) -> None:
        """Add the optimizer's state."""
        data = tree.encode(state, self.tensors[OPTIMIZER], OPTIMIZER, check_part)
        if self.leads:
            self.trees["optimizer"] = data

    def put_partition(
        self,
        partition: Partition,
        trees: Iterable[bytes],
        rest: Mapping[str, Any] | None,
        others: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Add the states of optimizers that give each rank some of the parameters to step.

        Args:
            partition: What this rank steps.
            trees: `Partition.text` of each rank; on rank 0.
            rest: The state of the model's optimizer without that of any parameter, if it is one.
            others: The same of those given by keyword, by their names.
        """
        self.alone[OPTIMIZER] |= partition.optimizer
        self.alone[STATE] |= partition.other
        if not self.leads:
            return
        of_ranks = [tree.loads(text) for text in trees]
        if rest is not None:
            states = {name: s for each in of_ranks for name, s in each["optimizer"].items()}
            self.put_optimizer(rest)
            names = [name for group in rest["param_groups"] for name in group["params"]]
            in_order = {name: states[name] for name in names if name in states}
            self.trees["optimizer"]["state"] = in_order
        for name, of_other in others.items():
            data = tree.encode(of_other, self.tensors[STATE], f"other.{name}")
            numbered = {n: state for each in of_ranks for n, state in each["other"][name]}
            data["state"] = tree.of_pairs(sorted(numbered.items()))
            self.trees["other"][name] = data

    def put_other(self, name: str, value: Any) -> None:
        """Add a value that was given by keyword, or the state of an object that was."""
        tree.check_key(name, "other")
        if self.leads:
            stored = tree.encode_later(value, self.tensors[STATE], f"other.{name}", check_part)
            self.trees["other"][name] = stored
        elif holds_shards(value):
            tree.encode(value, self.tensors[STATE], f"other.{name}", check_part)

    def put_log(self, log: Any) -> None:
        """Add the training log."""
        if self.leads:
            self.trees["log"] = tree.encode_later(log, self.tensors[STATE], "log")

    def put_objects(self, objects: Iterable[str], classes: Mapping[str, str]) -> None:
        """Add which of the values given by keyword are states, and of objects of which class."""
        if self.leads:
            self.trees |= {"objects": sorted(objects), "classes": dict(classes)}

    def put_rank(self, state: RankState) -> None:
        """Add the state of this rank."""
        self.ranks[str(state.rank)] = state.tree
        self.alone[STATE] |= state.tensors
        self._sharded |= state.sharded
        self._pieces |= state.pieces

    def put_ranks(self, blobs: Iterable[bytes]) -> None:
        """Add the states of all ranks, as `RankState.to_bytes` made them, in their order."""
        for rank, blob in enumerate(blobs):
            header = tensors.parse_header(blob, len(blob), "a rank")
            infos = header.tensors.items()
            self.alone[STATE] |= {name: tensors.tensor_at(blob, info) for name, info in infos}
            self.ranks[str(rank)] = tree.loads(header.metadata[TREE])

    @uncollected
    def plan(self, choose: Choose | None = None) -> Plan:
        """Return what is to be stored of it; tensors are the live ones.

        Args:
            choose: Says what of the tensors this rank writes; left out: all. One that is sharded is
                then on a mesh of this rank alone.

        Raises:
            UnsupportedStateError: Something cannot be stored; the message holds the path to it.
        """
        if choose is None and any(
            is_sharded(tensor) for found in self.tensors.values() for tensor in found.values()
        ):
            choose = _part_here
        files = [self._file(part, found, choose) for part, found in self.tensors.items()]
        trees = {**self.trees, "ranks": self.ranks}
        kept = [f for f in files if f.tensors or (self.leads and f.part == MODEL)]
        for file in kept:
            tensors.check_names(file.tensors)
        return Plan(tuple(kept), trees)

    def _file(
        self, part: str, present: dict[str, torch.Tensor], choose: Choose | None
    ) -> TensorFile:
        stored, pieces, whole = present, {}, present
        if choose is not None:
            shares = {name: choose(f"{part}/{name}", tensor) for name, tensor in present.items()}
            chosen = {name: share for name, share in shares.items() if share is not None}
            stored = {name: share.local for name, share in chosen.items()}
            pieces = {n: share.piece for n, share in chosen.items() if share.piece is not None}
            whole = {**stored, **{name: present[name] for name in pieces}}
        strides = tensors.strides_of(whole)
        if self.alone.get(part):
            stored = {**stored, **self.alone[part]}
            sharded, more = (self._sharded, self._pieces) if part == STATE else ({}, {})
            strides |= tensors.strides_of({**self.alone[part], **sharded})
            pieces = {**pieces, **more}
        aliases: Mapping[str, str] = {}
        if part in (MODEL, MODEL_FROZEN):
            aliases = {n: target for n, target in self.model.aliases.items() if target in stored}
        metadata = self._metadata if part == MODEL else {}
        return TensorFile(part, stored, aliases, metadata, strides, pieces)


def _part_here(_key: str, tensor: torch.Tensor) -> Share:
    return Share(part_here(tensor), None)


@uncollected
def layout(plan: Plan) -> list[EncodedFile]:
    """Return the files of a checkpoint. No tensor is copied (see `encoding.tensors.encode`)."""
    parts = []
    for file in plan.files:
        views = tensors.encode(file.tensors, file.aliases, file.metadata, file.strides, file.pieces)
        row = Chunks(views, owner=file.tensors)
        parts.append(EncodedFile(file.part, "safetensors", row, views[0][:]))
    return [*parts, EncodedFile(STATE, "json", Chunks([tree.dumps(plan.trees)]))]
