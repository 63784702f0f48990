"""What a gang says and does when a rank is lost; each rank plays support/gangs/losses.py."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import DistNetworkError

from ray_imuckpt import Checkpointer
from ray_imuckpt.gang import Gang
from ray_imuckpt.gang.transport import Alone
from ray_imuckpt.gang.watch import Register, Watch, ask
from support.programs import run_program

Told = dict[int, dict[str, Any]]


STORIES = (
    *("dies_after_a_save_was_begun", "dies_while_all_write", "rank_zero_dies_before_a_save"),
    *("does_not_come", "never_starts", "is_interrupted_in_a_meeting", "comes_late"),
    *("2:rank_0_of_two_dies_while_both_write", "2:rank_1_of_two_dies_while_both_write"),
    *("2:one_of_two_never_writes", "dies_while_it_reads_for_another", "reads_for_ever"),
)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stories, one after the other from one process: torch is imported once."""
    directory = tmp_path_factory.mktemp("losses")
    ended = run_program("support.gangs.losses", directory, *STORIES)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return directory


def lose(played: Path, story: str) -> Told:
    """Return what each rank that lived on told of a story."""
    told: Told = {
        int(file.stem): json.loads(file.read_text()) for file in (played / story).glob("*.json")
    }
    assert not any("failed" in each for each in told.values()), told
    return told


@pytest.mark.slow
def test_a_rank_that_dies_is_an_error_that_says_what_was_committed(played: Path) -> None:
    """Every rank that lives on gets GangBrokenError at once; rank 0 knows how its save ended."""
    told = lose(played, "dies_after_a_save_was_begun")
    assert set(told) == {0, 2}
    for call in ("told", "again", "later"):
        assert "Epoch 1 was committed." in told[0][call]
        assert "Whether epoch 1 was committed is known to rank 0" in told[2][call]
        for rank in (0, 2):
            assert re.search(r"The connection to .*ranks? .*\b1\b.* was lost", told[rank][call])
            assert "Start the gang again" in told[rank][call]


@pytest.mark.slow
def test_a_rank_that_dies_while_all_write_ends_the_save(played: Path) -> None:
    """Nothing is committed, and rank 0 does not wait for it until the deadline."""
    told = lose(played, "dies_while_all_write")
    assert set(told) == {0, 2}
    assert "The save of epoch 2 goes on on rank 0" in told[0]["told"]
    assert "Whether epoch 2 was committed is known to rank 0" in told[2]["told"]
    assert told[0]["saved"] == told[2]["saved"] == [1]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_the_death_of_one_of_two_while_both_write_is_named_by_the_other(
    played: Path, lost: int
) -> None:
    """Nothing is listed; rank 0 removes its own files once its patience is over."""
    told = lose(played, f"rank_{lost}_of_two_dies_while_both_write")
    left = 1 - lost
    assert set(told) == {left}
    for call in ("told", "later"):
        assert f"The connection to rank {lost} was lost" in told[left][call]
    assert told[left]["saved"] == []
    if left == 0:
        assert "Nothing was committed" in told[0]["later"]
        assert told[0]["files"] == []


@pytest.mark.slow
def test_a_peer_that_never_writes_its_part_ends_the_save_at_the_deadline(played: Path) -> None:
    """`timeout` holds for what another rank writes, and for the meeting after it."""
    told = lose(played, "one_of_two_never_writes")[0]
    assert re.search(r"waited 2 s for rank 1\b", told["told"])
    assert "Nothing was committed: rank 1 did not say within 2 s" in told["told"]
    assert told["saved"] == []


@pytest.mark.slow
def test_a_rank_that_dies_while_it_reads_for_others_ends_the_restore(played: Path) -> None:
    """The others do not wait for the bytes that it was to send, and name what they have begun."""
    told = lose(played, "dies_while_it_reads_for_another")
    assert set(told) == {0, 1}
    for rank in (0, 1):
        assert "model may hold a part of epoch 1: build anew" in told[rank]["told"]
        assert re.search(r"The connection to .*ranks? .*\b2\b.* was lost", told[rank]["told"])


@pytest.mark.slow
def test_rank_zero_may_die_too(played: Path) -> None:
    """The others do not wait for the rank that writes."""
    told = lose(played, "rank_zero_dies_before_a_save")
    assert set(told) == {1, 2}
    for rank in (1, 2):
        assert "was lost" in told[rank]["told"]
        assert "No save was in flight." in told[rank]["told"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("story", "lost"), [("does_not_come", 2), ("never_starts", 1), ("reads_for_ever", 2)]
)
def test_a_rank_that_does_not_come_is_named_at_the_deadline(
    played: Path, story: str, lost: int
) -> None:
    """Nobody waits longer than `timeout`, in `checkpoint`, the very first call, and a restore."""
    told = lose(played, story)
    for rank in {0, 1, 2} - {lost}:
        assert re.search(rf"waited 2 s for ranks? .*\b{lost}\b", told[rank]["told"])


@pytest.mark.slow
def test_a_rank_that_is_interrupted_is_not_waited_for(played: Path) -> None:
    """Ctrl-C on one rank, which lives on, ends the meeting for the others."""
    told = lose(played, "is_interrupted_in_a_meeting")
    assert told[1]["told"] == "interrupted"
    for rank in (0, 1, 2):
        assert "Rank 1 left a meeting of the ranks: KeyboardInterrupt" in told[rank]["later"]


@pytest.mark.slow
def test_who_waits_says_for_whom(played: Path) -> None:
    """A late rank is named in the log of those that wait, and nothing else happens."""
    told = lose(played, "comes_late")
    assert all(each["saved"] == [1] for each in told.values())
    assert any(re.search(r"Waiting for rank.* 2 since", text) for text in told[0]["records"])


class Shelf(dict[str, str]):
    """A store in memory."""

    def set(self, key: str, value: str, /) -> None:
        self[key] = value

    def get(self, key: str, /) -> bytes:  # type: ignore[override]
        return self[key].encode()

    def check(self, keys: list[str], /) -> bool:
        return all(key in self for key in keys)


def test_the_register_knows_who_has_come_and_the_first_reason_to_leave() -> None:
    """A rank is missing until it has come, or one has failed on it; the first reason stands."""
    shelf = Shelf()
    mine, theirs = (Register(shelf, rank, 3) for rank in (0, 1))
    assert mine.missing(1) == [1, 2]
    theirs.come(4)
    assert (mine.missing(4), mine.missing(5)) == ([2], [1, 2])
    assert mine.left() is None
    theirs.leave("died")
    mine.leave("bored")
    assert mine.left() == "died"
    theirs.live_on()
    assert mine.missing(9) == [2]
    nobody = Register(None, 0, 3)
    nobody.live_on()
    nobody.leave("why")
    assert (nobody.missing(1), nobody.left()) == (None, None)


def test_a_store_that_fails_stops_nobody() -> None:
    """Without an answer nothing is known, and the wait goes on."""

    class Gone(Shelf):
        def set(self, key: str, value: str, /) -> None:
            raise DistNetworkError("gone")

        def check(self, keys: list[str], /) -> bool:
            raise DistNetworkError("gone")

    register = Register(Gone(), 0, 2)
    assert ask(lambda: register.missing(1)) is None
    with Watch(register, 1, 0.01) as watch:
        assert watch.left is None


def test_an_interrupt_in_a_step_is_told_to_the_others() -> None:
    """`Gang.run_all` lets them know that this rank does not come, and goes on being interrupted."""
    told: list[BaseException] = []

    class Telling(Alone):
        def leave(self, error: BaseException) -> None:
            told.append(error)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Gang(Telling()).run_all(interrupted)
    assert [type(error) for error in told] == [KeyboardInterrupt]


@pytest.mark.parametrize(("given", "meant"), [(5, 5.0), (0.5, 0.5), (timedelta(minutes=1), 60.0)])
def test_timeout_is_seconds_or_a_timedelta(given: Any, meant: float) -> None:
    """Both are taken, and travel with the Checkpointer."""
    checkpointer = Checkpointer("nowhere", timeout=given)
    assert checkpointer.__getstate__()["timeout"] == timedelta(seconds=meant)


@pytest.mark.parametrize("given", [0, -1, float("nan"), float("inf"), "5", None, True])
def test_another_timeout_is_refused_at_construction(given: Any) -> None:
    """A deadline that is none is an error where it is given."""
    with pytest.raises((TypeError, ValueError), match="timeout="):
        Checkpointer("nowhere", timeout=given)
