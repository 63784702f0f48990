"""Parts that obstore sends, and pieces that it has read. Touches memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence

from ray_imuckpt.storage.engines.budget import Budget
from ray_imuckpt.storage.engines.protocol import Source


def counted(source: Source, budget: Budget) -> Iterator[memoryview]:
    """Yield the views of all parts, a connection taken for each part until it has been sent.

    obstore does not tell when a part was sent, but lets go of its memory then.
    """
    for part in source.parts():
        budget.take()
        *views, last = part
        sent = weakref.finalize(last, budget.give)
        sent.atexit = False
        part.clear()
        while views:
            yield views.pop(0)
        end = [last]
        del last
        yield end.pop()


def fill(views: Sequence[memoryview], pieces: Iterator[memoryview]) -> int:
    """Copy pieces into views, one after the other; return how many bytes that were."""
    done = 0
    rest = iter(views)
    view = next(rest, memoryview(b""))
    for piece in pieces:
        left = piece
        while len(left):
            while not len(view):
                view = next(rest)
            count = min(len(view), len(left))
            view[:count] = left[:count]
            view, left = view[count:], left[count:]
            done += count
    return done
