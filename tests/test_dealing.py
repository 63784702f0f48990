"""Chunks dealt among ranks: each that is needed is read by exactly one, evenly, in windows."""

from __future__ import annotations

import random

import numpy as np
import pytest

from ray_imuckpt.loading.dealing import Need, deal, windows_to_all, windows_to_some


def needs(*ranks: str) -> list[Need]:
    """Return what ranks need: a letter for each chunk; in capitals where a rank sees nothing."""
    return [Need(text.islower(), np.array([letter in "xX" for letter in text])) for text in ranks]


TABLE = {
    ("x..", "..x"): ([[0], [2]], [], []),
    ("xxx", "xxx"): ([[], []], [0, 1, 2], []),
    ("xx.", ".xx"): ([[0], [2]], [1], []),
    ("xx.", ".xx", "..."): ([[0], [2], []], [], [1]),
    ("...", "..o"): ([[], []], [], []),
    ("x.o", "O.X"): ([[0], []], [], [2]),
    ("xo.", "X..", "X.X"): ([[], [], []], [0], [2]),
}


@pytest.mark.parametrize("ranks", TABLE, ids=str)
def test_who_reads_what(ranks: tuple[str, ...]) -> None:
    """Alone what one needs and sees; to all, or to some, the rest; nothing that nobody needs."""
    alone, to_all, to_some = TABLE[ranks]
    dealt = [deal(needs(*ranks), rank) for rank in range(len(ranks))]
    assert [d.alone for d in dealt] == alone
    assert all((d.to_all, d.to_some) == (to_all, to_some) for d in dealt)
    assert all(d.readers == [r for r, n in enumerate(needs(*ranks)) if n.sees] for d in dealt)


def test_every_chunk_has_one_reader_whatever_is_needed() -> None:
    """Random needs, sizes, blind ranks and windows; what travels is what was told."""
    draw = random.Random(0)
    for _ in range(200):
        count, ranks = draw.randint(1, 40), draw.randint(1, 6)
        wanted = [np.array([draw.random() < 0.4 for _ in range(count)]) for _ in range(ranks)]
        told = [Need(r == 0 or draw.random() < 0.7, w) for r, w in enumerate(wanted)]
        again = [Need.from_bytes(need.to_bytes(), count) for need in told]
        assert all(
            a.sees == b.sees and (a.wanted == b.wanted).all()
            for a, b in zip(told, again, strict=True)
        )
        dealt = [deal(again, rank) for rank in range(ranks)]
        sizes = [draw.randint(1, 9) for _ in range(count)]
        most = draw.choice([1, 10, 1000])
        passed = [*windows_to_all(dealt[0].to_all, sizes, dealt[0].readers, most)]
        read = [(rank, chunk) for rank, d in enumerate(dealt) for chunk in d.alone]
        read += [(lot.reader, chunk) for window in passed for lot in window for chunk in lot.chunks]
        for rank in range(ranks):
            parcels = windows_to_some(again, dealt[0].to_some, sizes, most, rank)
            sent = {(w, c) for w, p in enumerate(parcels) for row in p.sent.values() for c in row}
            read += [(rank, chunk) for w, chunk in sent if chunk not in parcels[w].again]
        assert sorted(chunk for _, chunk in read) == sorted(np.flatnonzero(sum(wanted)).tolist())
        assert all(told[rank].sees for rank, _ in read)
        for window in passed:
            chunks = [chunk for lot in window for chunk in lot.chunks]
            assert sum(sizes[chunk] for chunk in chunks) <= most or len(chunks) == 1
            assert len({lot.reader for lot in window}) == len(window)


@pytest.mark.parametrize("readers", [[0], [0, 1], [0, 2, 3], [*range(16)]], ids=str)
def test_readers_get_the_same_to_do(readers: list[int]) -> None:
    """In a window up to a chunk; and over all windows, where there are fewer chunks than ranks."""
    bytes_of = dict.fromkeys(readers, 0)
    for window in windows_to_all([*range(320)], [8] * 320, readers, 64):
        for lot in window:
            assert len(lot.chunks) <= -(-8 // len(readers))
            bytes_of[lot.reader] += 8 * len(lot.chunks)
    assert max(bytes_of.values()) - min(bytes_of.values()) <= 32, bytes_of
