"""Runs of a framework's trainer that are killed, beside the same ones that are not.

The ranks of each attempt are forked from this process, which has imported the framework; the tests
hold what both have told against each other.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from support.forking import import_all, on_gang, on_ranks
from support.programs import run_program
from support.waiting import until_committed

Runs = Mapping[tuple[str, int], list[int]]
"""For each kind and number of ranks the kills: at which batch an attempt ends by SIGKILL."""
GANGS = ((2, 4), (3, 4), (1, 0))
"""The attempts of a run whose gang changes in mid-epoch: ranks, and at which batch they die."""
Train = Callable[[Path, int, int, str, Callable[[], None]], None]
"""Trains, given the run directory, the rank, the number of ranks, the kind, and what to call at
every batch, which may not return; at its end it writes what came of it by `tell`."""


def tell(directory: Path, rank: int, result: Mapping[str, Any]) -> None:
    """Write down what a rank has made."""
    (directory / f"told-{rank}.json").write_text(json.dumps(result))


def make(directory: Path, runs: str, train: Train, misuse: Callable[[Path], object]) -> None:
    """Make each run twice, once without its kills; then misuse the framework.

    Args:
        directory: Where the run directories go, and one for the misuse.
        runs: Of `told`.
        train: What each rank does.
        misuse: Tries misuses out in a directory, in a process of its own.
    """
    import_all()
    for name, ranks, kills in json.loads(runs):
        _run(directory / f"{name}-{ranks}-whole", name, [(ranks, 0)], train)
        attempts = [(ranks, die_at) for die_at in [*kills, 0]]
        _run(directory / f"{name}-{ranks}", name, attempts, train)
    _run(directory / "elastic", "elastic", GANGS, train)
    misuses = directory / "misuses"
    misuses.mkdir()

    def try_all(_: int) -> None:
        misuse(misuses)

    assert on_ranks(1, try_all) == {0: 0}


def told(program: str, directory: Path, runs: Runs) -> Path:
    """Return where a program that calls `make` has told what came of the runs."""
    words = json.dumps([[name, ranks, kills] for (name, ranks), kills in runs.items()])
    ended = run_program(program, directory, words)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return directory


def whole_and_killed(told: Path, name: str, ranks: int, rank: int) -> list[dict[str, Any]]:
    """Return what a rank has made in the run that was not killed, and in the one that was.

    That the one began from scratch and the other did not, and that neither warned, is checked.
    """
    whole, killed = (
        json.loads((told / f"{name}-{ranks}{suffix}" / f"told-{rank}.json").read_text())
        for suffix in ("-whole", "")
    )
    assert whole.pop("resumed_from") is None
    assert killed.pop("resumed_from") in killed["saved"][:-1]
    assert whole.pop("messages") == killed.pop("messages") == []
    return [whole, killed]


def misuses(told: Path) -> dict[str, Any]:
    """Return what each case of misuse told."""
    result: dict[str, Any] = json.loads((told / "misuses" / "told.json").read_text())
    return result


def check_refused(misuse: dict[str, Any], kind: str, text: str) -> None:
    """Check that a misuse was an error of a kind, in words, and that the model is as it was."""
    assert misuse["type"] == kind
    assert text in misuse["text"]
    assert misuse["same"]


def note(directory: Path, ranks: int, rank: int, samples: Any) -> None:
    """Add the samples of a batch, each known by its number, to those that a rank was trained on."""
    with (directory / f"samples-{ranks}-{rank}").open("a") as file:
        file.write(json.dumps(samples.tolist()) + "\n")


def noted(told: Path) -> dict[int, list[list[float]]]:
    """Return, for each size of the run whose gang changes, the samples of each step in order."""
    batches = {
        ranks: [
            [json.loads(line) for line in path.read_text().splitlines()]
            for path in sorted((told / "elastic").glob(f"samples-{ranks}-*"))
        ]
        for ranks, _ in GANGS
    }
    return {
        ranks: [sorted(chain.from_iterable(step)) for step in zip(*each, strict=True)]
        for ranks, each in batches.items()
    }


def check_each_once(steps: list[list[float]]) -> None:
    """Check that these steps are an epoch: 36 samples, each of them once."""
    samples = list(chain.from_iterable(steps))
    assert len(samples) == len(set(samples)) == 36


def warnings_of_mid_epoch(told: Path) -> list[str]:
    """Return what the last attempt of the run whose gang changes was told of its epoch."""
    messages = json.loads((told / "elastic" / "told-0.json").read_text())["messages"]
    return [message for message in messages if "in the middle of an epoch" in message]


def _run(directory: Path, name: str, attempts: Iterable[tuple[int, int]], train: Train) -> None:
    """Begin, kill and begin again, until an attempt comes to its end."""
    directory.mkdir()
    for ranks, die_at in attempts:
        ended = on_gang(ranks, partial(_attempt, directory, ranks, name, die_at, train))
        if die_at:  # the other rank dies as well, or ends once it is alone
            assert -signal.SIGKILL in ended.values(), ended
            assert all(ended.values()), ended
        else:
            assert not any(ended.values()), ended


def _attempt(directory: Path, ranks: int, name: str, die_at: int, train: Train, rank: int) -> None:
    if ranks > 1:
        os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "NODE_RANK": "0"}
        os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    train(directory, rank, ranks, name, _dies_at(die_at, directory))


def _dies_at(call: int, directory: Path) -> Callable[[], None]:
    """Return what ends this process in one of its calls (0: in none).

    Before it does, a checkpoint is committed: on a slow disk the first may still be on its way.
    """
    calls = 0

    def die() -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            until_committed(directory)
            os.kill(os.getpid(), signal.SIGKILL)

    return die
