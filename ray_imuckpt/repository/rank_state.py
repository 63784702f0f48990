"""The states that one rank alone has to give, as trees and live tensors. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from ray_imuckpt import staging
from ray_imuckpt.encoding import tensors, tree
from ray_imuckpt.encoding.tensors import Piece
from ray_imuckpt.errors import UnsupportedStateError
from ray_imuckpt.state.pieces import Owned
from ray_imuckpt.state.sharding import check_part, is_sharded

RANKS, SHARDS = "ranks.", "shards."
TREE = "imuckpt.tree"


class RankState:
    """The state of one rank alone, as a tree and tensors, which are the live ones.

    A sharded tensor in it is of several ranks: the trees of all of them refer to it by one name,
    and each writes its pieces.

    Args:
        state: Its random generators, its `per_rank` objects and their classes.
        rank: The rank.

    Attributes:
        rank: The rank.
        tree: The state.
        tensors: What this rank writes of its tensors, by their names in the whole checkpoint.
        sharded: The sharded ones among these, by the same names.
        shards: All sharded ones in the state, those too of which this rank writes nothing.
        pieces: Which piece of a sharded one this rank writes, where it is not all of it.
        spread: Whether any tensor of the state is sharded.

    Raises:
        UnsupportedStateError: Something in it cannot be stored.
    """

    def __init__(self, state: Mapping[str, Any], rank: int) -> None:
        self.rank = rank
        self.tensors: dict[str, torch.Tensor] = {}
        self.sharded: dict[str, torch.Tensor] = {}
        self.shards: dict[str, torch.Tensor] = {}
        self.pieces: dict[str, Piece] = {}
        root = f"{RANKS}{rank}"
        self.tree = tree.encode(dict(state), self.tensors, root, check_part)
        shards = {name: t for name, t in self.tensors.items() if is_sharded(t)}
        self.spread = bool(shards)
        if shards:
            self._put_aside(shards, root)

    def _put_aside(self, shards: Mapping[str, torch.Tensor], root: str) -> None:
        """Keep the pieces that this rank writes, under the names that all ranks give to these."""
        for name in shards:
            del self.tensors[name]
        owned = Owned()
        names = {}
        for name, tensor in shards.items():
            plain = name.partition("~")[0]
            if plain in self.tensors:  # is it, on the other ranks as well?
                raise UnsupportedStateError(
                    f"Two tensors of {root} have the same name, {plain}, and one is sharded.",
                    hint="Give them keys without dots.",
                )
            common = names[name] = f"{SHARDS}{owned.lowest_rank(tensor)}{name.removeprefix(root)}"
            self.shards[common] = tensor
            try:
                share = owned.share(tensor)
            except UnsupportedStateError as error:
                error.message = f"{name}: {error.message}"
                raise
            if share is None:
                continue
            self.tensors[common], self.sharded[common] = share.local, tensor
            if share.piece is not None:
                self.pieces[common] = share.piece
        self.tree = tree.renamed(self.tree, names)

    @property
    def size(self) -> int:
        """Return the bytes of the tensors that this rank writes of it."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def to_bytes(self) -> bytes:
        """Return it as bytes, to be sent to rank 0; nothing of it is sharded."""
        stored = staging.in_place(self.tensors)
        text = tree.dumps(self.tree).decode("ascii")
        views = tensors.encode(stored, metadata={TREE: text}, strides=tensors.strides_of(stored))
        return b"".join(view[:] for view in views)


class Partition:
    """The states that a rank has of optimizers which give each rank some parameters to step.

    Args:
        optimizer: Of the model's, if it is such a one: name of a parameter to its values.
        other: Of those given by keyword, by their names: number of a parameter to its values.

    Attributes:
        optimizer: The tensors of the former.
        other: Those of the latter.
    """

    def __init__(
        self, optimizer: Mapping[str, Any] | None, other: Mapping[str, Mapping[int, Any]]
    ) -> None:
        self.optimizer: dict[str, torch.Tensor] = {}
        self.other: dict[str, torch.Tensor] = {}
        encoded = tree.encode({"state": dict(optimizer or {})}, self.optimizer, "optimizer")
        numbered = {
            name: [
                [number, tree.encode(values, self.other, f"other.{name}.state.{number}")]
                for number, values in state.items()
            ]
            for name, state in other.items()
        }
        self._tree = {"optimizer": encoded["state"], "other": numbered}

    @property
    def size(self) -> int:
        """Return the bytes of its tensors."""
        return self.size_of_optimizer + sum(tensor.nbytes for tensor in self.other.values())

    @property
    def size_of_optimizer(self) -> int:
        """Return the bytes of the tensors of the model's optimizer."""
        return sum(tensor.nbytes for tensor in self.optimizer.values())

    @cached_property
    def text(self) -> bytes:
        """Return the trees as bytes, to be sent to rank 0."""
        return tree.dumps(self._tree)
