"""The trainer for transformers: a run that is killed is the run that was not, in mid-epoch too.

One process imports transformers for all tests of this file, and forks every attempt.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.runs import frameworks

RUNS: frameworks.Runs = {  # a kind, ranks, and at which batch each attempt dies
    ("steps", 1): [25, 9],  # in mid-epoch: accumulation, evaluation, logs out of step with saves
    ("epochs", 1): [30],  # the best one is loaded at the end, which comes early
    ("workers", 1): [12],  # with a scaler, and the end is in mid-epoch
    ("stream", 1): [15],  # a loader without a length
    ("steps", 2): [17],
    ("epochs", 2): [15],
    ("sharded", 2): [7],  # by accelerate's FSDP2
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs have told what they made."""
    directory = tmp_path_factory.mktemp("transformers")
    return frameworks.told("support.runs.transformers_run", directory, RUNS)


@pytest.fixture(scope="module")
def misuses(told: Path) -> dict[str, Any]:
    """What each case of `support.runs.transformers_misuse` told."""
    return frameworks.misuses(told)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ranks"), RUNS)
def test_a_run_that_was_killed_ends_with_the_bytes_of_one_that_was_not(
    told: Path, name: str, ranks: int
) -> None:
    """Weights, optimizer, scheduler, callbacks, log, best metric and random numbers."""
    for rank in range(ranks):
        whole, killed = frameworks.whole_and_killed(told, name, ranks, rank)
        assert whole["files"] == [], "transformers saves nothing of its own"
        assert killed == whole


@pytest.mark.slow
def test_another_gang_goes_on_in_mid_epoch_behind_the_same_samples(told: Path) -> None:
    """From two ranks to three, and then to one, each sample of an epoch is trained on once."""
    steps = frameworks.noted(told)
    frameworks.check_each_once(steps[2] + steps[3][:2])
    frameworks.check_each_once(steps[3][2:] + steps[1])
    assert frameworks.warnings_of_mid_epoch(told) == []


@pytest.mark.slow
def test_the_best_one_is_loaded_at_the_end(told: Path) -> None:
    """It is one that training went on from, and its metrics are kept with it."""
    whole = json.loads((told / "epochs-1-whole" / "told-0.json").read_text())
    assert whole["best"] == 11
    assert whole["saved"] == [11, 22, 33, 44], "stopped early, by patience"
    assert {"loss", "eval_loss", "epoch"} <= whole["metrics"].keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "kind", "text"),
    [
        ("another_model", "StateMismatchError", "net.weight: saved [1, 4], here [1, 5]"),
        ("another_framework", "StateMismatchError", "was not made by ImuckptTrainer"),
        ("a_directory_of_theirs", "ValueError", "continue_from"),
        ("save_total_limit", "ValueError", "retention"),
        ("save_every", "ValueError", "save_steps"),
        ("ignore_data_skip", "ValueError", "next batch"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(
    misuses: dict[str, Any], case: str, kind: str, text: str
) -> None:
    """And the model is as it was."""
    frameworks.check_refused(misuses[case], kind, text)


@pytest.mark.slow
def test_what_is_over_stays_over(misuses: dict[str, Any]) -> None:
    """Not one step more, in mid-epoch neither; with more steps to make, the run goes on."""
    assert misuses["nothing_left"] == [2, 2, 2, [2, 4]]
    assert misuses["without_training"] == [[], True]


@pytest.mark.slow
def test_the_mixin_serves_other_trainers(misuses: dict[str, Any]) -> None:
    """Of the library, and such as are derived from its own."""
    assert misuses["mixed_in"] == [True, None, 2]
