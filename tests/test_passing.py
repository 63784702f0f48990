"""Chunks passed on in a gang: to those that need them, in bounded memory, and errors to all."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from ray_imuckpt.errors import ImuckptError
from ray_imuckpt.gang import Gang
from ray_imuckpt.loading.dealing import Lots, Need, Parcels, deal, windows_to_all, windows_to_some
from ray_imuckpt.loading.laying import Carried, LaidParcels
from ray_imuckpt.loading.passing import Passing
from support.gangs.threads import Crowd, Member


class Got(NamedTuple):
    """What a rank has got: the chunks, what it has read of them, and what went wrong."""

    chunks: dict[int, bytes]
    read: list[int]
    received: int
    meetings: int
    error: BaseException | None


Failing = Callable[[int, int], bool]
"""Whether a rank fails with a chunk."""


def never(rank: int, chunk: int) -> bool:
    """Fail nowhere."""
    return False


def content(chunk: int, size: int) -> torch.Tensor:
    """Return the bytes of a chunk."""
    return (torch.arange(size) * 31 + chunk * 7).to(torch.uint8)


def passed(
    needs: Sequence[Need], sizes: Sequence[int], most: int,
    reads: Failing = never, puts: Failing = never,
) -> list[Got]:  # fmt: skip
    """Pass on what ranks need, each rank on a thread; return what each has got."""

    def part(gang: Gang, member: Member) -> Got:
        plan = deal(needs, gang.rank)
        got, numbers = dict[int, bytes](), list[int]()

        def read(wanted: Sequence[Carried]) -> None:
            for chunk, memory in wanted:
                if reads(gang.rank, chunk):
                    raise OSError(f"chunk {chunk}")
                assert needs[gang.rank].sees
                numbers.append(chunk)
                memory.copy_(content(chunk, sizes[chunk]))

        def put(chunk: int, data: torch.Tensor) -> None:
            if puts(gang.rank, chunk):
                raise RuntimeError(f"chunk {chunk}")
            got[chunk] = data.numpy().tobytes()

        passing = Passing(gang, sizes, read, put)
        windows: list[Lots | Parcels] = [
            *windows_to_all(plan.to_all, sizes, plan.readers, most),
            *windows_to_some(needs, plan.to_some, sizes, most, gang.rank),
        ]
        passing.run(windows, [torch.device("cpu")])
        numbers += plan.alone
        got |= {chunk: bytes(content(chunk, sizes[chunk]).tolist()) for chunk in plan.alone}
        return Got(got, numbers, member.received, member.meetings, passing.error)

    return Crowd(len(needs)).play(part)


def drawn(draw: random.Random) -> tuple[list[Need], list[int]]:
    """Return needs of a few ranks, and sizes: chunks that nobody, one, some and all need."""
    ranks, count = draw.randint(2, 6), draw.randint(1, 40)
    needs = []
    for rank in range(ranks):
        wanted = np.array([draw.random() < 0.5 or chunk % 5 == 0 for chunk in range(count)])
        needs.append(Need(rank == 0 or draw.random() < 0.7, wanted))
    return needs, [draw.randint(1, 9) for _ in range(count)]


@pytest.mark.parametrize("seed", range(12))
def test_every_rank_gets_what_it_needs_and_each_chunk_is_read_once(seed: int) -> None:
    """Random needs, sizes, windows and ranks that see nothing; what some need goes to no other."""
    draw = random.Random(seed)
    needs, sizes = drawn(draw)
    got = passed(needs, sizes, draw.choice([1, 12, 1000]))
    wanted = np.array([need.wanted for need in needs])
    assert (
        sorted(chunk for each in got for chunk in each.read)
        == np.flatnonzero(wanted.any(0)).tolist()
    )
    for each, need in zip(got, needs, strict=True):
        here = {chunk: each.chunks[chunk] for chunk in np.flatnonzero(need.wanted).tolist()}
        assert here == {chunk: content(chunk, sizes[chunk]).numpy().tobytes() for chunk in here}
        assert set(each.chunks) == {*here, *each.read}
        told = each.meetings * len(needs)  # how reading went
        data = sum(sizes[chunk] for chunk in here if chunk not in each.read)
        assert data <= each.received <= data + told


@pytest.mark.parametrize("to_all", [True, False], ids=["to all", "to some"])
@pytest.mark.parametrize("way", ["read", "put"])
def test_what_fails_on_one_rank_ends_the_passing_on_all(way: str, to_all: bool) -> None:
    """All leave at the same window, soon, and the others have no error of their own."""
    needs = [Need(True, np.full(80, to_all or rank != 3, np.bool_)) for rank in range(4)]

    def fails(rank: int, chunk: int) -> bool:
        return rank == 1 and chunk >= 12

    failing = {"reads": fails} if way == "read" else {"puts": fails}
    got = passed(needs, [5] * 80, 40, **failing)
    whole = passed(needs, [5] * 80, 40)[0].meetings
    assert {each.meetings for each in got} == {got[0].meetings}
    assert got[0].meetings <= whole / 2
    assert [each.error is None for each in got] == [True, False, True, True]


def test_a_rank_that_gets_no_thread_reads_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others would wait for it."""
    begin = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == "imuckpt-read":
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    needs = [Need(True, np.array([True, True, rank != 2])) for rank in range(3)]
    got = passed(needs, [3, 4, 5], 4)
    assert [each.error for each in got] == [None] * 3
    assert [sorted(each.chunks) for each in got] == [[0, 1, 2], [0, 1, 2], [0, 1]]


def test_a_rank_without_memory_for_a_window_is_an_error_on_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No other waits for what it was to pass on."""
    empty, failing = torch.empty, iter([True])

    def short(*size: int, **options: Any) -> torch.Tensor:
        if "pin_memory" in options and next(failing, False):
            raise MemoryError("no room")
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", short)
    with pytest.raises(ImuckptError, match="MemoryError: no room"):
        passed([Need(True, np.array([True] * 3))] * 3, [3, 4, 5], 4)


def resharded(before: int, now: int, chunks: int) -> list[Need]:
    """Return what ranks need of the files of others, whose tensors were cut evenly by rows.

    Args:
        before: How many ranks have saved: as many files.
        now: How many restore.
        chunks: Of a file.
    """
    wanted = np.zeros((now, before * chunks), np.bool_)
    for file in range(before):
        first, last = file * now // before, ((file + 1) * now - 1) // before
        wanted[first : last + 1, file * chunks : (file + 1) * chunks] = True
    return [Need(True, each) for each in wanted]


@pytest.mark.parametrize("before", [64, 49, 63, 96], ids=str)
def test_a_change_of_the_gang_sends_a_share_of_each_rank(before: int) -> None:
    """Bytes of each rank, counted: less than its share, at once on all, and within the window."""
    now, chunks, most = 48, 6, 4
    needs = resharded(before, now, chunks)
    plan = deal(needs, 0)
    assert not plan.to_all
    sizes = [1] * (before * chunks)
    seen = [windows_to_some(needs, plan.to_some, sizes, most, rank) for rank in range(now)]
    share = before * chunks / now
    sent = [sum(len(row) for w in each for row in w.sent.values()) for each in seen]
    received = [sum(len(row) for w in each for row in w.received.values()) for each in seen]
    further = np.array([need.wanted for need in needs]).sum(0)[plan.to_some] - 1
    assert sum(sent) == sum(received) == further.sum()
    assert max(*sent, *received) <= 1.3 * share
    assert len({len(each) for each in seen}) == 1
    busiest = max(a + b for a, b in zip(sent, received, strict=True))
    assert len(seen[0]) <= 2 * -(-busiest // most), "the ranks wait for each other"
    for each in seen:
        assert all(LaidParcels.size(w, sizes, now) - 2 * (now - 1) <= most for w in each)


def test_what_many_ranks_need_does_not_take_the_memory_of_all_of_them() -> None:
    """It goes to some in each of several windows, and is read once."""
    needs = [Need(True, np.array([rank != 0] * 3)) for rank in range(9)]
    got = passed(needs, [10, 7, 10], 20)
    assert sorted(chunk for each in got for chunk in each.read) == [0, 1, 2]
    assert all(len(each.chunks) == 3 for each in got[1:])
    assert got[0].received == 8 * got[0].meetings
    for rank in range(9):
        for window in windows_to_some(needs, [0, 1, 2], [10, 7, 10], 20, rank):
            assert LaidParcels.size(window, [10, 7, 10], 9) <= 20 + 16
