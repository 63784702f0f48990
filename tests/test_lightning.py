"""The callback for Lightning: a run that is killed is the run that was not, in mid-epoch too.

One process imports Lightning for all tests of this file, and forks every attempt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_imuckpt import ImuckptError
from ray_imuckpt.integrations import versions
from support.runs import frameworks

RUNS: frameworks.Runs = {  # a kind, ranks, and at which batch each attempt dies
    ("epochs", 1): [15],  # a plateau scheduler
    ("steps", 1): [11, 5],  # in mid-epoch: accumulation, validation in between, a generator
    ("stream", 1): [11],  # two optimizers, a loader without a length
    ("workers", 1): [10],  # and loaders that are asked for again in every epoch
    ("stateful", 1): [17],  # a loader that knows its place, a scaler, max_steps
    ("averaged", 1): [15],  # a callback that changes what Lightning would save
    ("epochs", 2): [8],
    ("steps", 2): [10],
    ("sharded", 2): [5],  # by ModelParallelStrategy: FSDP2
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs have told what they made."""
    directory = tmp_path_factory.mktemp("lightning")
    return frameworks.told("support.runs.lightning_run", directory, RUNS)


@pytest.fixture(scope="module")
def misuses(told: Path) -> dict[str, Any]:
    """What each case of `support.runs.lightning_misuse` told."""
    return frameworks.misuses(told)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ranks"), RUNS)
def test_a_run_that_was_killed_ends_with_the_bytes_of_one_that_was_not(
    told: Path, name: str, ranks: int
) -> None:
    """Weights, optimizers, schedulers, callbacks, loops, metrics, log and random numbers."""
    for rank in range(ranks):
        whole, killed = frameworks.whole_and_killed(told, name, ranks, rank)
        if rank > 0:  # the log is rank 0's
            del whole["log"], killed["log"]
        assert killed == whole


@pytest.mark.slow
def test_another_gang_goes_on_in_mid_epoch_behind_the_same_samples_or_says_that_it_cannot(
    told: Path,
) -> None:
    """From two ranks to three each sample is trained on once; one alone draws another order."""
    steps = frameworks.noted(told)
    frameworks.check_each_once(steps[2] + steps[3][:2])
    assert len(steps[1]) == 9, "of the second epoch three ranks had seen a quarter"
    (warning,) = frameworks.warnings_of_mid_epoch(told)
    assert "by 3 ranks and 9 samples at a time, and goes on with 1 rank and 3" in warning
    assert "each rank passes over 3 batches" in warning


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "kind", "text"),
    [
        ("another_module", "StateMismatchError", "net.weight: saved [1, 4], here [1, 5]"),
        ("fewer_optimizers", "StateMismatchError", "gave 2 optimizers when this was saved"),
        ("more_optimizers", "StateMismatchError", "gives more optimizers or schedulers"),
        ("another_framework", "StateMismatchError", "was not made by ImuckptCallback"),
        ("beside_ckpt_path", "ValueError", "ImuckptCallback restores as well"),
        ("two_callbacks", "ValueError", "two ImuckptCallbacks"),
        ("steps_beside_save_every", "ValueError", "give one of them"),
        ("epochs_after_steps", "StateMismatchError", "saved under the numbers of its steps"),
        ("no_steps", "ValueError", "every_n_train_steps=0"),
        ("fewer_than_no_steps", "ValueError", "is negative; use 1 or more"),
        ("no_directory", "TypeError", "dir=5 is of type int; a path or a URL is wanted"),
        ("batches_of_the_user", "ImuckptError", "Leave out every_n_train_steps"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(
    misuses: dict[str, Any], case: str, kind: str, text: str
) -> None:
    """And the module is as it was."""
    frameworks.check_refused(misuses[case], kind, text)


@pytest.mark.slow
def test_what_is_over_stays_over(misuses: dict[str, Any]) -> None:
    """A run at its end, or stopped early, trains nothing more; a try of the code saves nothing."""
    assert misuses["nothing_left"] == [2, True]
    assert misuses["stopped_early"] == [[1, 2], 2, [1, 2]]
    assert misuses["fast_dev_run"] == []


@pytest.mark.slow
def test_a_module_without_optimizers_goes_on(misuses: dict[str, Any]) -> None:
    """Lightning gives it a stand-in of one, which is no part of the checkpoint."""
    assert misuses["no_optimizer"] == [None, 1, 4]


@pytest.mark.slow
def test_a_callback_that_is_gone_is_named(misuses: dict[str, Any]) -> None:
    """Its state is in the checkpoint, and the run goes on without it."""
    (message,) = misuses["callback_gone"]
    assert "EarlyStopping" in message


@pytest.mark.slow
def test_averaging_that_cannot_be_resumed_is_told_of_before_it_begins(
    misuses: dict[str, Any],
) -> None:
    """Lightning's StochasticWeightAveraging exchanges the schedulers in mid-run."""
    assert "exchanges the schedulers when it begins" in misuses["exchanged_schedulers"][0]


@pytest.mark.slow
def test_the_callback_serves_the_package_under_its_other_name(misuses: dict[str, Any]) -> None:
    """Installed as pytorch_lightning, the same Trainer is of other classes."""
    assert misuses["other_name"] == [None, 1]


def test_a_version_that_was_not_tried_is_refused() -> None:
    """Unless the user says so; a bug fix of a version that was tried is none."""
    versions.check("Lightning", "2.6.99", ("2.5", "2.6"), untried_version=False)
    versions.check("Lightning", "2.7.0rc1", ("2.6",), untried_version=True)
    for version in ("2.7.0rc1", "2.60.0", "3.0"):
        with pytest.raises(ImuckptError, match="was not tried") as caught:
            versions.check("Lightning", version, ("2.5", "2.6"), untried_version=False)
        assert "Install lightning 2.5 or 2.6" in str(caught.value)
