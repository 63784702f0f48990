"""A look whether the ranks of a mesh hold all of what is sharded over them in ``per_rank``.

What is there may differ by rank, so that nothing compares it. But of a tensor in which a piece is
missing a checkpoint would be committed that nobody can read.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ray_imuckpt import units
from ray_imuckpt.encoding import chunks
from ray_imuckpt.errors import StateMismatchError
from ray_imuckpt.gang import Gang
from ray_imuckpt.repository.rank_state import SHARDS, RankState
from ray_imuckpt.state.sharding import described, spread_of

_DIGITS = 16  # of a checksum in a note; what is alike in them by chance is refused when it is read


class _Held(NamedTuple):
    """A sharded tensor, as a rank tells of it.

    Attributes:
        kind: Its shape, dtype and placement, in words.
        whole: Bytes of all of it.
        written: Bytes that this rank writes of it; ``None`` where that is nothing.
    """

    kind: str
    whole: int
    written: int | None


def note(alone: RankState) -> dict[str, tuple[str, int, int]]:
    """Return of each mesh a checksum of what is on it, its bytes, and those that this rank writes.

    Args:
        alone: The state of this rank.
    """
    by_mesh: dict[str, dict[str, _Held]] = defaultdict(dict)
    known: dict[Any, str] = {}
    for name, held in _held(alone).items():
        sharded: Any = alone.shards[name]
        mesh = sharded.device_mesh
        if mesh not in known:  # thousands of tensors are on a few
            known[mesh] = _checksum(mesh.mesh.tolist())
        by_mesh[known[mesh]][name] = held
    return {
        mesh: (
            _checksum([(name, one.kind) for name, one in sorted(tensors.items())]),
            sum(one.whole for one in tensors.values()),
            sum(one.written or 0 for one in tensors.values()),
        )
        for mesh, tensors in by_mesh.items()
    }


def check(gang: Gang, alone: RankState, notes: Sequence[Mapping[str, Sequence[Any]]]) -> None:
    """Raise unless all of each tensor is written; a collective where ranks tell different things.

    Args:
        gang: The gang.
        alone: The state of this rank.
        notes: What `note` returned on each rank.

    Raises:
        StateMismatchError: A part of a tensor is on no rank, or it is not the same on all.
    """
    by_mesh: dict[str, list[Sequence[Any]]] = defaultdict(list)
    for of_rank in notes:
        for mesh, one in of_rank.items():
            by_mesh[mesh].append(one)
    if all(
        len({digest for digest, _, _ in ranks}) == 1
        and sum(written for _, _, written in ranks) == ranks[0][1]
        for ranks in by_mesh.values()
    ):
        return
    _, of_ranks = gang.exchange(lambda: (None, json.dumps(_held(alone)).encode()))
    tensors: dict[str, dict[int, _Held]] = defaultdict(dict)
    for rank, text in enumerate(of_ranks):
        for name, held in json.loads(text).items():
            tensors[name][rank] = _Held(*held)
    for name, by_rank in sorted(tensors.items()):
        _check_one(name, by_rank)


def _check_one(name: str, by_rank: Mapping[int, _Held]) -> None:
    """Raise unless these ranks write all of a tensor."""
    written = [one.written for one in by_rank.values() if one.written is not None]
    whole = {one.whole for one in by_rank.values()}
    if len({one.kind for one in by_rank.values()}) == 1 and written and {sum(written)} == whole:
        return
    path = name.removeprefix(SHARDS).partition(".")[2]
    raise StateMismatchError(
        f"{path} is sharded, and of its {max(whole)} bytes {sum(written)} are on "
        f"{units.ranks([*by_rank])}: other ranks of its mesh do not have it under this name, or it "
        "is another one there.",
        hint="Put what is sharded into per_rank under the same names on all ranks of its mesh.",
    )


def _held(alone: RankState) -> dict[str, _Held]:
    tensors = {}
    kinds: dict[Any, str] = {}
    for name, tensor in alone.shards.items():
        written = alone.tensors[name].nbytes if name in alone.tensors else None
        kind = tensor.shape, tensor.dtype, spread_of(tensor)
        if kind not in kinds:  # thousands of tensors are of a few
            kinds[kind] = described(tensor)
        size = tensor.numel() * tensor.element_size()
        tensors[name] = _Held(kinds[kind], size, written)
    return tensors


def _checksum(value: object) -> str:
    return chunks.checksum([repr(value).encode()])[:_DIGITS]
