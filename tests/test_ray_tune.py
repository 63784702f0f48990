"""Ray Tune: trials that fail, experiments that are killed, PBT, and Train runs within trials."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
import ray.tune
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model
from torch import nn

from conftest import adamw, same_bytes, small_model
from ray_imuckpt import Checkpointer
from support.waiting import until_committed

# Made outside of the function, and a process may run one trial after another.
SHARED = Checkpointer(save_every=2)


def trial(config: dict[str, Any]) -> None:
    """Train five epochs; the trial with lr 0.1 dies twice, in epoch 5.

    The second time what it has last reported is damaged.
    """
    torch.manual_seed(3)
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"], momentum=0.9)
    checkpointer = SHARED
    started = checkpointer.start(model, optimizer)
    notes = Path(config["notes"]) / str(config["lr"])
    with notes.open("a") as file:
        file.write(f"{started.start_epoch} ")
    for epoch in range(started.start_epoch, 6):
        model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        started.log.append(epoch)
        starts = len(notes.read_text().split())
        if config["lr"] == 0.1 and epoch == 5 and starts < 3:
            saved = Path(checkpointer.path_to_checkpoint(4))
            until_committed(saved.parent, 4)
            if starts == 2:
                Path(saved, "manifest.json").write_text("{")
            os.kill(os.getpid(), signal.SIGKILL)
        checkpointer.checkpoint(
            epoch,
            model=model,
            optimizer=optimizer,
            log=started.log,
            metrics={"loss": config["lr"] + 1 / epoch, "epoch": epoch},
        )


def tuner(tmp_path: Path, trainable: Any, space: dict[str, Any], **options: Any) -> ray.tune.Tuner:
    run = {key: options.pop(key) for key in ("failure_config", "stop") if key in options}
    return ray.tune.Tuner(
        trainable,
        param_space={"notes": str(tmp_path), **space},
        tune_config=ray.tune.TuneConfig(**{"max_concurrent_trials": 2, **options}),
        run_config=ray.tune.RunConfig(storage_path=str(tmp_path), name="exp", verbose=0, **run),
    )


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_trials_have_directories_of_their_own_and_one_that_dies_resumes(tmp_path: Path) -> None:
    """Each trial resumes from its newest sound checkpoint, and reports pointers only."""
    results: Any = tuner(
        tmp_path,
        trial,
        {"lr": ray.tune.grid_search([0.1, 0.2, 0.3])},
        failure_config=ray.tune.FailureConfig(max_failures=2),
        reuse_actors=True,
        scheduler=ray.tune.schedulers.ASHAScheduler(
            metric="loss", mode="min", time_attr="epoch", max_t=9, grace_period=3
        ),
    ).fit()
    assert not results.errors
    assert (tmp_path / "0.1").read_text() == "1 5 3 "  # 4 was saved, 5 was lost; then 4 as well
    assert (tmp_path / "0.2").read_text() == (tmp_path / "0.3").read_text() == "1 "
    for result in results:
        directory = Path(result.path)
        saved = [epoch for epoch in (2, 4) if epoch <= result.metrics["epoch"]]
        assert Checkpointer(directory).list_existing_checkpoint_indices() == saved
        reported = [p for p in directory.glob("checkpoint_0*/**/*") if p.is_file()]
        assert sum(p.stat().st_size for p in reported) < 64 * 1024
        assert not [p for p in reported if p.suffix == ".safetensors"]
    ended = {result.config["lr"]: result.metrics["epoch"] for result in results}
    assert (ended[0.1], ended[0.3]) == (5, 3), "ASHA stops the worst one early"
    best = Checkpointer.of_result(results, "loss", "min")
    assert best.path_to_last_checkpoint() == str(
        Path(results.get_best_result("loss", "min").path) / "checkpoint=4"
    )
    assert best.read().log == [1, 2, 3, 4]
    model = best.load(small_model())
    assert same_bytes(dict(model.state_dict()), best.read(4).model)
    # the pointer itself is a checkpoint to read and load from, wherever the experiment is moved to
    (tmp_path / "exp").rename(tmp_path / "moved")
    pointer = max((tmp_path / "moved").glob("*lr=0.1000*/checkpoint_00*"))
    assert Checkpointer(tmp_path).read(pointer).epoch == 4


def member(config: dict[str, Any]) -> None:
    """One of a population: the metric is the trial's own number, so that the winner is known."""
    torch.manual_seed(int(config["lr"] * 1000))
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"], momentum=0.9)
    checkpointer = Checkpointer()
    started = checkpointer.start(model, optimizer)
    (group,) = optimizer.param_groups
    log = started.log
    if log:  # what it was given, for whoever compares
        momenta = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
        given = {"epoch": started.start_epoch - 1, "weights": list(model.parameters())}
        name = f"{ray.tune.get_context().get_trial_id()}-{started.start_epoch}.pt"
        torch.save({**given, "momenta": momenta}, Path(config["notes"]) / name)
    trial_id = ray.tune.get_context().get_trial_id()
    log.append([trial_id, started.start_epoch, group["lr"], config["lr"]])
    for epoch in range(started.start_epoch, 9):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        time.sleep(0.2)  # so that the members stay beside each other
        checkpointer.checkpoint(
            epoch,
            model=model,
            optimizer=optimizer,
            log=log,
            metrics={"score": config["score"], "epoch": epoch},
        )


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore:Consider boosting PBT performance")
def test_pbt_goes_on_from_the_donors_checkpoint_with_the_mutated_hyperparameters(
    tmp_path: Path,
) -> None:
    """An exploited trial has the donor's state, bit by bit, and its new learning rate."""
    scheduler = ray.tune.schedulers.PopulationBasedTraining(
        time_attr="epoch",
        perturbation_interval=4,
        synch=True,
        quantile_fraction=0.5,
        resample_probability=1.0,
        hyperparam_mutations={"lr": [0.5, 0.25]},
    )
    space = {
        "lr": ray.tune.grid_search([0.001, 0.002]),
        "score": ray.tune.sample_from(lambda config: config["lr"]),
    }
    results: Any = tuner(
        tmp_path, member, space, scheduler=scheduler, metric="score", mode="max"
    ).fit()
    assert not results.errors

    def own(result: Any) -> str:  # `metrics` of an exploited trial are the donor's at first
        return "_".join(Path(result.path).name.split("_")[1:3])

    def log_of(result: Any) -> list[Any]:
        return Checkpointer.of_result(result).read().log

    exploited = [result for result in results if log_of(result)[0][0] != own(result)]
    assert exploited, f"nobody was given another's checkpoint: {[log_of(r) for r in results]}"
    for result in exploited:
        trainer, first_epoch, rate, configured = log_of(result)[-1]
        assert trainer == own(result), "it went on itself, with the donor's log"
        assert first_epoch > 1
        assert rate == configured in (0.5, 0.25), "the mutated learning rate wins"
        assert Checkpointer.of_result(result).read().manifest.ancestors
        given = torch.load(tmp_path / f"{trainer}-{first_epoch}.pt", weights_only=False)
        donor = next(r for r in results if own(r) == log_of(result)[-2][0])
        theirs = Checkpointer(donor.path).read(given["epoch"])
        assert theirs.optimizer is not None
        momenta = [theirs.optimizer["state"][n]["momentum_buffer"] for n in ("weight", "bias")]
        assert same_bytes(given["weights"], [theirs.model["weight"], theirs.model["bias"]])
        assert same_bytes(given["momenta"], momenta)


def gang(config: dict[str, Any]) -> None:
    """A worker of a Train run within a trial."""
    torch.manual_seed(3)
    model = prepare_model(small_model())
    optimizer = adamw(model)
    checkpointer: Checkpointer = config["checkpointer"]
    started = checkpointer.start(model, optimizer)
    if ray.train.get_context().get_world_rank() == 0:
        kind = "elsewhere" if config["elsewhere"] else "own"
        with (Path(config["notes"]) / f"starts-{kind}").open("a") as file:
            file.write(f"{started.start_epoch} ")
    for epoch in range(started.start_epoch, 5):
        if epoch == 3 and started.start_epoch == 1:
            until_committed(Path(checkpointer.path_to_checkpoint(2)).parent, 2)
            raise RuntimeError("as the test wants")
        checkpointer.checkpoint(
            epoch, model=model, optimizer=optimizer, metrics={"epoch": epoch, "loss": 1 / epoch}
        )


def trial_with_a_gang(config: dict[str, Any]) -> None:
    """A trial that starts a TorchTrainer; with `elsewhere`, not in the trial's directory."""
    checkpointer = Checkpointer(config["elsewhere"])
    TorchTrainer(
        gang,
        train_loop_config={"checkpointer": checkpointer, **config},
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
        run_config=checkpointer.run_config(),
    ).fit()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_trial_that_runs_a_gang_resumes_it_and_tune_gets_its_metrics(tmp_path: Path) -> None:
    """A gang within a trial reports to Tune, and is resumed when the trial is tried again."""
    results: Any = tuner(
        tmp_path,
        trial_with_a_gang,
        {"elsewhere": ray.tune.grid_search([None, str(tmp_path / "elsewhere" / "run")])},
        failure_config=ray.tune.FailureConfig(max_failures=1),
        metric="loss",
        mode="min",
    ).fit()
    assert not results.errors
    for result in results:
        elsewhere = result.config["elsewhere"]
        kind = "elsewhere" if elsewhere else "own"
        assert (tmp_path / f"starts-{kind}").read_text() == "1 3 "
        assert result.metrics["epoch"] == 4
        assert result.metrics["checkpoint_path"].endswith("checkpoint=4")
        found = Checkpointer(elsewhere) if elsewhere else Checkpointer.of_result(result)
        assert found.list_existing_checkpoint_indices() == [1, 2, 3, 4]
        directory = Path(elsewhere or result.path)
        assert found.path_to_last_checkpoint() == str(directory / "checkpoint=4")
        assert found.load(small_model()) is not None
