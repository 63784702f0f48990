"""Compare what must be the same on every rank of a gang, and name what is not. Collectives.

Each rank reduces what it was called with to a few digests, which travel with a message that is sent
anyway. Only where they differ do the ranks exchange the rest, to name what differs.
"""

from __future__ import annotations

import json
import logging
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ray_imuckpt import units
from ray_imuckpt.agreement.traits import Shapes
from ray_imuckpt.encoding import chunks
from ray_imuckpt.errors import StateMismatchError
from ray_imuckpt.gang import Gang

logger = logging.getLogger("ray_imuckpt")

T = TypeVar("T")

_NAMED = 5  # tensors of an error

PER_RANK = (
    "What is meant to differ by rank (stages of a pipeline, experts) goes into per_rank={...}: "
    "modules, with optimizers of their own, and an empty torch.nn.Module() as the model if nothing "
    "is left."
)


@dataclass(frozen=True)
class Traits:
    """The facts about a rank that are compared, in words and checksums; each by name.

    Attributes:
        arguments: What the call was given.
        tensors: Shape, dtype and placement of what is stored of the model and the optimizer, and of
            whatever is sharded.
        values: Checksums of what is replicated, and stored by rank 0 for all.
        may_differ: Checksums of what rank 0 stores for all, though another rank may hold another.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, str] | Shapes = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    may_differ: Mapping[str, str] = field(default_factory=dict)

    def digests(self) -> bytes:
        """Return one checksum for each kind of trait, as text of some hundred bytes."""
        return " ".join(_digest(traits) for traits in self.kinds().values()).encode()

    def kinds(self) -> dict[str, Mapping[str, Any] | Shapes]:
        """Return each kind of trait by its name."""
        return {
            "arguments": self.arguments,
            "tensors": self.tensors,
            "values": self.values,
            "may_differ": self.may_differ,
        }


def agreed(gang: Gang, call: str, step: Callable[[], tuple[T, Traits]]) -> T:
    """Run `step` on every rank, and make sure that all hold the same; a collective.

    Args:
        gang: The gang.
        call: What was called, for the error.
        step: Returns what this rank goes on with, and its traits; see
            `ray_imuckpt.gang.Gang.exchange`.

    Returns:
        What `step` returned on this rank, beside the traits.

    Raises:
        ValueError: Arguments differ; on every rank.
        StateMismatchError: Tensors of the model or the optimizer differ; on every rank.
    """

    def digested() -> tuple[tuple[T, Traits], bytes]:
        result, traits = step()
        return (result, traits), b"" if gang.world_size == 1 else traits.digests()

    (result, traits), digests = gang.exchange(digested)
    compare(gang, call, traits, digests, set())
    return result


def compare(
    gang: Gang, call: str, traits: Traits, digests: Sequence[bytes], warned: set[str]
) -> None:
    """Make sure that all ranks hold the same; a collective where their digests differ.

    Args:
        gang: The gang.
        call: What was called, for the error.
        traits: What this rank holds.
        digests: What `Traits.digests` returned on each rank.
        warned: Names that the ranks were warned of before; what they are warned of now is added.

    Raises:
        ValueError, StateMismatchError: As for `agreed`.
    """
    if len(set(digests)) == 1:
        return
    by_rank = [row.split() for row in digests]
    for (kind, held), *kind_digests in zip(traits.kinds().items(), *by_rank, strict=True):
        if len(set(kind_digests)) > 1:
            rows = gang.all_gather(_encoded(held))
            _DIFFER[kind](call, [json.loads(row) for row in rows], gang.rank, warned)


def _digest(traits: Mapping[str, Any] | Shapes) -> str:
    return traits.digest() if isinstance(traits, Shapes) else chunks.checksum([_encoded(traits)])


def _encoded(traits: Mapping[str, Any] | Shapes) -> bytes:
    if isinstance(traits, Shapes):
        traits = traits.words()
    return json.dumps(traits, default=str, sort_keys=True).encode()


def _refuse_arguments(call: str, rows: list[dict[str, Any]], _rank: int, _: set[str]) -> None:
    for rank, row in enumerate(rows):
        for name in rows[0]:
            if row[name] != rows[0][name]:
                raise ValueError(
                    f"{call}() was called with different arguments: {name} is {rows[0][name]!r} on "
                    f"rank 0 and {row[name]!r} on rank {rank}. Every rank passes the same."
                )


def _refuse_tensors(call: str, rows: list[dict[str, str]], _rank: int, _: set[str]) -> None:
    differing = _differing(rows)
    differences = [
        f"{name} is {_cut(rows[0].get(name))} on rank 0 and {_cut(rows[others[0]].get(name))} on "
        f"{units.ranks(others)}"
        for name, others in differing.items()
    ]
    if not differences:  # only their order
        return
    raise StateMismatchError(
        f"{call}() was called with different states: {_shortened(differences)}. A checkpoint has "
        "one model and one optimizer for all ranks.",
        rank=_first(differing),
        hint=f"Build them alike on every rank. {PER_RANK}",
    )


def _refuse_values(call: str, rows: list[dict[str, str]], _rank: int, _: set[str]) -> None:
    differing = _differing(rows)
    differences = [f"{name} on {units.ranks(others)}" for name, others in differing.items()]
    if not differences:
        return
    raise StateMismatchError(
        f"{call}(): what every rank should hold alike is not what it is on rank 0, whose state is "
        f"stored for all: {_shortened(differences)}.",
        rank=_first(differing),
        hint="Wrap the model in DistributedDataParallel before start(), or build it with the same "
        f"seed on every rank. {PER_RANK}",
    )


def _warn(_call: str, rows: list[dict[str, str]], rank: int, warned: set[str]) -> None:
    """Warn on rank 0 of what is not the same on every rank; once for each name.

    A detector that was fed with each rank's own loss would be another one after the restart.
    """
    for name, others in _differing(rows).items():
        if name in warned:
            continue
        warned.add(name)
        if rank == 0:
            logger.warning(
                "%s on %s is not what it is on rank 0, whose state is stored and will be "
                "restored on every rank. Pass what differs by rank in per_rank; what steers "
                "training (learning rate, stopping) should be the same on all ranks.",
                name,
                units.ranks(others),
            )


_DIFFER = {
    "arguments": _refuse_arguments,
    "tensors": _refuse_tensors,
    "values": _refuse_values,
    "may_differ": _warn,
}


def _differing(rows: list[dict[str, str]]) -> dict[str, list[int]]:
    """Return the names that differ from rank 0's, and the ranks on which they do.

    A rank without any has not looked: it has compared these objects before.
    """
    if not rows[0]:
        return {}
    names = dict.fromkeys(name for row in rows for name in row)
    differences = {
        name: [
            rank
            for rank, row in enumerate(rows)
            if row and _differ(rows[0].get(name), row.get(name))
        ]
        for name in names
    }
    return {name: others for name, others in differences.items() if others}


def _first(differing: Mapping[str, list[int]]) -> int:
    """Return the first rank that differs: the error is to be the same one on all ranks."""
    return min(others[0] for others in differing.values())


def _differ(one: str | None, other: str | None) -> bool:
    """Return whether two traits differ; checksums of different kinds of devices say nothing."""
    if one is None or other is None or one == other:
        return one != other
    return ":" not in one or one.partition(":")[0] == other.partition(":")[0]


def _cut(trait: str | None) -> str:
    return "not there" if trait is None else textwrap.shorten(trait, 120, placeholder=" ...")


def _shortened(differences: list[str]) -> str:
    more = len(differences) - _NAMED
    return "; ".join(differences[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
