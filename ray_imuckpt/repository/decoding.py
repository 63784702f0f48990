"""The parts of a stored checkpoint as the state that they hold; `codec` is the way there. No I/O.

Everything is held against its types: whoever may write into the directory may write anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict, TypeVar

import msgspec
from torch import Tensor

from ray_imuckpt.encoding import tree
from ray_imuckpt.encoding.prepared import prepared
from ray_imuckpt.errors import CorruptCheckpointError
from ray_imuckpt.repository.codec import EXTRA, VERSIONS
from ray_imuckpt.repository.rank_state import RANKS

T = TypeVar("T")

_FIELDS = {"log", "other", "objects", "classes", "optimizer"}


@prepared
@dataclass(frozen=True)
class DecodedState:
    """The contents of the ``state`` part.

    Attributes:
        log: The training log.
        other: The user's values, those of `objects` being states.
        objects: The names in `other` whose values are states of objects.
        classes: The names of the classes of `objects`, as far as they were saved.
        ranks: The trees of the rank states, in rank order, still undecoded.
        optimizer: The optimizer's tree, still undecoded.
    """

    log: Any
    other: dict[str, Any]
    objects: frozenset[str]
    classes: dict[str, str]
    ranks: list[Any] = field(repr=False)
    optimizer: Any = field(repr=False)


@dataclass(frozen=True)
class _Random:
    """A rank's generators, as far as it is not for them to tell what they take."""

    python: Any
    numpy: dict[str, Any]
    torch: Tensor
    cuda: list[Tensor] = field(default_factory=list)


@prepared
@dataclass(frozen=True)
class _Rank:
    """A rank state."""

    random: _Random | None
    per_rank: dict[str, Any]
    classes: dict[str, str]


class _Group(TypedDict):
    params: list[str | int]


_Optimizer = TypedDict(
    "_Optimizer", {"class": str, "param_groups": list[_Group], "state": dict[str | int, Any]}
)


def decode_model(
    tensors: Mapping[str, T], metadata: Mapping[str, str]
) -> tuple[dict[str, T], dict[str, Any]]:
    """Return the ``model`` part's tensors, or what stands for them, and its extra state."""
    if EXTRA not in metadata:
        return dict(tensors), {}
    extra = tree.decode_dict(tree.loads(metadata[EXTRA]), tensors)
    return {n: t for n, t in tensors.items() if not n.startswith(EXTRA)}, extra


def decode_versions(metadata: Mapping[str, str]) -> dict[str, int] | None:
    """Return the versions of the model's modules; ``None`` where they were not stored."""
    if VERSIONS not in metadata:
        return None
    versions: dict[str, int] = tree.loads(metadata[VERSIONS])
    _check(versions, dict[str, int], "the model's file")
    return versions


def decode_state(
    texts: Iterable[bytes], tensors: Mapping[str, Any], world_size: int, url: str
) -> DecodedState:
    """Return what the ``state`` part holds.

    Args:
        texts: Its trees: what is the same for all ranks in one of them, each rank state in any
            one.
        tensors: Its tensors, or what stands for them; those of the rank states need not be there.
        world_size: How many ranks the gang had.
        url: Where the checkpoint is, for errors.

    Raises:
        CorruptCheckpointError: A field is missing, is there twice or has a wrong type.
    """
    fields: dict[str, Any] = {}
    ranks: dict[str, Any] = {}
    for text in texts:
        data = _check(tree.loads(text), dict[str, Any], url)
        of_ranks = _check(data.pop("ranks", {}), dict[str, Any], url)
        twice = [*(fields.keys() & data), *(f"ranks.{rank}" for rank in ranks.keys() & of_ranks)]
        if twice:
            raise _wrong(f"{min(twice)} is there twice", url)
        fields |= data
        ranks |= of_ranks
    if len(ranks) != world_size or any(str(rank) not in ranks for rank in range(world_size)):
        raise _wrong(f"of {world_size} ranks, {len(ranks)} have a state", url)
    missing = _FIELDS - fields.keys()
    if missing:
        raise _wrong(f"{min(missing)} is missing", url)
    together = {name: fields[name] for name in ("log", "other")}
    decoded = tree.decode(together, tensors)  # at once: no stored array is referred to twice
    decoded["ranks"] = [ranks[str(rank)] for rank in range(world_size)]
    state: DecodedState = _check({**fields, **decoded}, DecodedState, url)
    return state


def decode_rank(data: tree.JSON, tensors: Mapping[str, Any], url: str) -> dict[str, Any]:
    """Return a rank state.

    Args:
        data: Its tree.
        tensors: Its tensors, or what stands for those of its objects. Each must have memory of its
            own: in the file a byte tensor may lie at any address, and torch crashes the process
            when it is given the state of a generator at an odd one.
        url: Where the checkpoint is, for errors.
    """
    decoded = tree.decode_dict(data, tensors)
    _check(decoded, _Rank, url)
    return decoded


def decode_per_rank(data: tree.JSON, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the states of a rank's objects, of what stands for their tensors in `stored`."""
    per_rank = data.get("per_rank") if isinstance(data, dict) else None
    return tree.decode_dict(per_rank, stored)


def rank_of(name: str) -> int | None:
    """Return whose rank state a tensor of the ``state`` part is of; ``None`` for all others."""
    whose, _, rest = name.removeprefix(RANKS).partition(".")
    belongs = name.startswith(RANKS) and rest and whose.isascii() and whose.isdecimal()
    return int(whose) if belongs else None


def decode_optimizer(
    data: tree.JSON, tensors: Mapping[str, Any], url: str
) -> dict[str, Any] | None:
    """Return the optimizer's state; its tensors are those in `tensors`, or what stands for them."""
    if data is None:
        return None
    decoded = tree.decode_dict(data, tensors)
    _check(decoded, _Optimizer, url)
    return decoded


def _check(data: Any, kind: Any, url: str) -> Any:
    """Return the data as `kind`, if its types are those; else raise `CorruptCheckpointError`."""
    try:
        return msgspec.convert(data, kind)
    except ValueError as error:  # msgspec's own among them
        raise _wrong(str(error), url) from error


def _wrong(what: str, url: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(f"A tree has a wrong or missing field: {what}.", url=url)
