"""The deal of an epoch's samples to the ranks, and where another gang goes on in its middle.

A batch that was trained on is one of a rank. Where the gang has another size by now, or batches
have, each rank passes over another number of them, so that the gang stands behind as many samples.
These are the same ones where the order of an epoch is the same for a gang of any size: what hands
samples out in an order of its own does not let that be known.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch.utils.data import BatchSampler, DistributedSampler, SequentialSampler

from ray_imuckpt.units import amount

logger = logging.getLogger("ray_imuckpt")

_IN_ORDER = "as they lie"
_SEEDED = "SeedableRandomSampler"  # of accelerate: its order is of its seed and of the epoch alone


class Deal(NamedTuple):
    """A way in which samples are dealt.

    Attributes:
        ranks: The number of ranks.
        samples: How many samples all ranks take together at a time; where that is not known, how
            many batches.
        order: The order of an epoch in words, alike for gangs of all sizes; ``None``: not known.
    """

    ranks: int
    samples: int
    order: str | None

    @classmethod
    def of(cls, loaders: Sequence[Any], ranks: int) -> Deal:
        """Return how these loaders deal to so many ranks; the first says how many at a time."""
        orders = {_order(loader) for loader in loaders}
        order = orders.pop() if len(orders) == 1 else None
        return cls(ranks, _samples(loaders[0], ranks) if loaders else ranks, order)


class Position(NamedTuple):
    """A place in an epoch that another gang has begun.

    Attributes:
        batches: How many batches each rank passes over.
        exact: Whether all samples of them, and no others, were trained on.
    """

    batches: int
    exact: bool


def position_of(
    then: Deal, now: Deal, trained: int, *, multiple: int, length: int | None
) -> Position:
    """Return where ranks go on that are dealt to otherwise than those that have saved.

    Where it does not come out even, they begin earlier: no sample is left out for that.

    Args:
        then: How samples were dealt.
        now: How they are dealt.
        trained: How many batches each rank was trained on.
        multiple: Of how many batches an optimizer step is made: none goes on within one.
        length: How many batches a rank has in an epoch; ``None``: not known.
    """
    seen = trained * then.samples
    batches = seen // now.samples // multiple * multiple
    if length is not None:
        batches = min(batches, (length - 1) // multiple * multiple)
    same_order = now.order is not None and now.order == then.order
    return Position(batches, same_order and batches * now.samples == seen)


def passed_over(
    saved: Mapping[str, Any],
    now: Deal,
    trained: int,
    *,
    multiple: int,
    length: int | None,
    tells: bool,
) -> int | None:
    """Return how many batches each rank passes over that is dealt to otherwise than was saved.

    Args:
        saved: The fields of the `Deal` by which samples were dealt.
        now: As for `position_of`.
        trained: As for it.
        multiple: As for it.
        length: As for it.
        tells: Whether this process says where the gang goes on.

    Returns:
        ``None`` where samples are dealt to as many ranks, as many at a time: each goes on where it
        was.
    """
    then = Deal(**saved)
    if (now.ranks, now.samples) == (then.ranks, then.samples):
        return None
    position = position_of(then, now, trained, multiple=multiple, length=length)
    if tells:
        tell(then, now, position)
    return position.batches


def tell(then: Deal, now: Deal, position: Position) -> None:
    """Say where the gang goes on, and warn where samples are trained on twice or never."""
    words = (
        f"This run was saved in the middle of an epoch by {_gang(then)}, and goes on with "
        f"{_gang(now)}: each rank passes over {position.batches} batches of that epoch"
    )
    if position.exact:
        logger.info("%s, whose samples were trained on.", words)
        return
    reason = (
        "that does not come out even, and some samples are trained on twice in it"
        if now.order is not None and now.order == then.order
        else "these are not the samples that were trained on, since such gangs draw them in other "
        "orders; in this epoch some are trained on twice, or never"
    )
    logger.warning("%s; %s. All later epochs are whole.", words, reason)


def _gang(deal: Deal) -> str:
    return f"{amount(deal.ranks, 'rank')} and {deal.samples} samples at a time"


def _samples(loader: Any, ranks: int) -> int:
    whole = getattr(loader, "total_batch_size", None)  # of accelerate's: of all ranks
    each = getattr(loader, "batch_size", None)
    return int(whole) if whole else int(each or 1) * ranks


def _order(loader: Any) -> str | None:
    batches = getattr(loader, "batch_sampler", None)
    # accelerate's is for a rank, and holds that for all.
    batches = getattr(batches, "batch_sampler", batches)
    if batches is None:
        sampler: Any = getattr(loader, "sampler", None)
    elif type(batches) is BatchSampler:  # any other one may have an order of its own
        sampler = batches.sampler
    else:
        return None
    if type(sampler).__name__ == _SEEDED:
        return f"{_SEEDED} {sampler.initial_seed}"
    if type(sampler) is DistributedSampler:
        return f"DistributedSampler {sampler.seed}" if sampler.shuffle else _IN_ORDER
    return _IN_ORDER if type(sampler) is SequentialSampler else None
