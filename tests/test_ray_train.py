"""Ray Train: gangs that lose a worker, Ray's own records, its local mode, pointers."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2._internal.execution.train_fn_utils import set_train_fn_utils

import ray_imuckpt
from conftest import python_path, same_bytes, small_model
from ray_imuckpt import Checkpointer
from ray_imuckpt.storage import local
from support.runs.ray_gang import Training

HERE = Path(__file__).parent
LOSSES = {1: 0.9, 2: 0.1, 3: 0.8, 4: 0.7, 5: 0.2, 6: 0.6}


def loop(config: dict[str, Any]) -> None:
    """Train; fall as `config` says, on the first attempt."""
    training = Training()
    rank, model, optimizer = training.rank, training.model, training.optimizer
    checkpointer: Checkpointer = config["checkpointer"]
    started = checkpointer.start(model, optimizer, **training.objects)
    notes = Path(config["notes"])
    with (notes / f"starts-{rank}").open("a") as file:
        file.write(f"{started.start_epoch} ")
    fallen = notes / "fallen"

    def fall(epoch: int) -> None:
        if config.get("die_before_report") == epoch and rank == 1 and not fallen.exists():
            manifest = Path(checkpointer.path_to_checkpoint(epoch), "manifest.json")
            while not manifest.exists():  # rank 0 is still writing it
                time.sleep(0.01)
            fallen.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    report = ray.train.report

    def dying_report(metrics: dict[str, Any], **keywords: Any) -> None:
        fall(metrics["epoch"])
        report(metrics, **keywords)

    ray.train.report = dying_report  # committed in storage, but Ray has not heard of it
    for epoch in range(started.start_epoch, 7):
        training.epoch(epoch)
        started.log.append(epoch)
        if config.get("raise_at") == epoch and not fallen.exists():
            fallen.touch()
            raise RuntimeError("as the test wants")
        checkpointer.checkpoint(
            epoch,
            model=model,
            optimizer=optimizer,
            log=started.log,
            metrics={"epoch": epoch, "loss": LOSSES[epoch]},
            **training.objects,
        )
    if config.get("again"):
        save_again(checkpointer, training, started.log, notes)


def save_again(checkpointer: Checkpointer, training: Training, log: list[Any], notes: Path) -> None:
    """Epoch 6, which Ray knows, twice more: once the disk is full, once it is slow."""
    checkpointer.wait()
    put = local.LocalStorage.put_if

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "as the test wants")

    def slow(*arguments: Any) -> bool:
        time.sleep(4)
        return put(*arguments)

    for kind, entry in ((full, "lost"), (slow, "saved again")):
        local.LocalStorage.put_if = kind
        try:
            checkpointer.checkpoint(
                6, model=training.model, optimizer=training.optimizer, log=[*log, entry],
                metrics={"epoch": 6, "loss": 0.0}, force=True, **training.objects,
            )  # fmt: skip
        except ray_imuckpt.SaveFailedError:
            (notes / f"{entry}-{training.rank}").touch()
    local.LocalStorage.put_if = put


def fit(
    notes: Path, checkpointer: Checkpointer, workers: int, run_config: RunConfig, **how: Any
) -> Any:
    """Run `loop` on a gang."""
    notes.mkdir()
    return TorchTrainer(
        loop,
        train_loop_config={"checkpointer": checkpointer, "notes": str(notes), **how},
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run_config=run_config,
    ).fit()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_gang_whose_rank_1_is_killed_goes_on_from_the_newest_committed_checkpoint(
    tmp_path: Path,
) -> None:
    directory = tmp_path / "runs" / "gang"
    checkpointer = Checkpointer(directory)
    result = fit(
        tmp_path / "notes",
        checkpointer,
        2,
        checkpointer.run_config(
            failure_config=FailureConfig(max_failures=1),
            checkpoint_config=CheckpointConfig(
                num_to_keep=3, checkpoint_score_attribute="loss", checkpoint_score_order="min"
            ),
        ),
        die_before_report=3,
        again=True,
    )
    whole = Checkpointer(tmp_path / "runs" / "whole")
    fit(tmp_path / "notes-whole", whole, 2, whole.run_config())
    for part in ("model", "optimizer", "ranks", "other"):
        assert same_bytes(getattr(checkpointer.read(6), part), getattr(whole.read(6), part)), part

    for rank in (0, 1):  # epoch 3 was committed and not reported: not trained again
        assert (tmp_path / "notes" / f"starts-{rank}").read_text().split() == ["1", "4"]
        # the save of an epoch that Ray knew already failed, and every rank was told
        assert (tmp_path / "notes" / f"lost-{rank}").exists()
    assert checkpointer.read(6).log == [1, 2, 3, 4, 5, 6, "saved again"], "each epoch exactly once"
    assert checkpointer.read(6).metrics["loss"] == 0.0

    # Ray's own records: 3 was adopted, the worst went, what is left can be opened.
    assert result.metrics["epoch"] == 6
    assert result.checkpoint.path == str(directory / "checkpoint=6")
    kept = {Path(c.path).name: m["loss"] for c, m in result.best_checkpoints}
    assert kept == {"checkpoint=2": 0.1, "checkpoint=5": 0.2, "checkpoint=6": 0.6}
    assert checkpointer.list_existing_checkpoint_indices() == [2, 5, 6]
    snapshot = json.loads((directory / "checkpoint_manager_snapshot.json").read_text())
    assert len(snapshot["checkpoint_results"]) == 3

    # Loadable in a fresh process, through Ray's type and through ours.
    script = (
        "import sys, torch, ray_imuckpt\n"
        "from conftest import small_model\n"
        "with ray_imuckpt.Checkpointer(sys.argv[1]).get(6).as_directory() as local:\n"
        "    model = ray_imuckpt.load(small_model(9), local)\n"
        "print(model.state_dict()['0.weight'].sum().item())\n"
    )
    environment = {**os.environ, "PYTHONPATH": python_path()}
    printed = subprocess.run(
        [sys.executable, "-c", script, str(directory)],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert float(printed) == checkpointer.read(6).model["0.weight"].sum().item()
    by_ray = ray_imuckpt.load(small_model(8), result.checkpoint)
    assert same_bytes(dict(by_ray.state_dict()), dict(checkpointer.read(6).model))

    # Another fit() of the same directory: continue_from speaks of its first attempt only.
    again = Checkpointer(directory, continue_from=2)
    result = fit(
        tmp_path / "notes-2",
        again,
        1,
        again.run_config(failure_config=FailureConfig(max_failures=1)),
        raise_at=4,
    )
    assert (tmp_path / "notes-2" / "starts-0").read_text().split() == ["3", "4"]
    assert again.read(6).log == [1, 2, 3, 4, 5, 6]
    assert list(directory.glob("checkpoint_manager_snapshot.json.*.aside"))
    names = sorted(Path(c.path).name for c, _ in result.best_checkpoints)
    assert names == [f"checkpoint={e}" for e in (2, 3, 4, 5, 6)], "2 adopted, the rest reported"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_runs_own_storage_and_a_directory_elsewhere(tmp_path: Path) -> None:
    own = Checkpointer(save_every=3)
    result = fit(
        tmp_path / "notes", own, 1, RunConfig(storage_path=str(tmp_path / "results"), name="own")
    )
    assert Checkpointer(tmp_path / "results" / "own").list_existing_checkpoint_indices() == [3, 6]
    assert result.checkpoint.path == str(tmp_path / "results" / "own" / "checkpoint=6")
    assert result.metrics["epoch"] == 6

    elsewhere = Checkpointer(tmp_path / "elsewhere", save_every=3)
    result = fit(
        tmp_path / "notes-2",
        elsewhere,
        1,
        RunConfig(storage_path=str(tmp_path / "results"), name="pointers"),
    )
    assert elsewhere.list_existing_checkpoint_indices() == [3, 6]
    pointer = tmp_path / "results" / "pointers" / "checkpoint=6"
    assert [file.name for file in pointer.iterdir()] == ["imuckpt-pointer.json"]
    model = ray_imuckpt.load(small_model(4), result.checkpoint)
    assert same_bytes(dict(model.state_dict()), dict(elsewhere.read(6).model))
    assert Checkpointer(pointer.parent).list_existing_checkpoint_indices() == []


def local_fit(checkpointer: Checkpointer, notes: Path, run_config: RunConfig | None = None) -> Any:
    """Run `loop` in Ray's local mode."""
    report = ray.train.report
    try:
        return fit(notes, checkpointer, 0, run_config or checkpointer.run_config())
    finally:
        ray.train.report = report
        set_train_fn_utils(None)  # Ray forgets to: for the tests to come it would be local mode


@pytest.mark.parametrize("url", ["directory", "memory://{}/run"])
def test_local_mode_leaves_a_checkpoint_that_can_be_loaded(tmp_path: Path, url: str) -> None:
    directory = url.format(tmp_path.name) if "://" in url else str(tmp_path / "run")
    checkpointer = Checkpointer(directory, save_every=2)
    result = local_fit(checkpointer, tmp_path / "notes")
    assert result.metrics["epoch"] == 6
    with result.checkpoint.as_directory() as path:
        model = ray_imuckpt.load(small_model(5), path)
    assert same_bytes(dict(model.state_dict()), dict(checkpointer.read(6).model))
    assert checkpointer.list_existing_checkpoint_indices() == [2, 4, 6]
    with checkpointer.get(4).as_directory() as path:
        assert ray_imuckpt.load(small_model(5), path) is not None

    again = Checkpointer(directory, continue_from=4, save_every=5)
    result = local_fit(again, tmp_path / "notes-2")
    assert (tmp_path / "notes-2" / "starts-0").read_text().split() == ["5"]
    assert Path(result.checkpoint.path).name == "checkpoint=5", "epoch 6 reported metrics alone"
    assert result.metrics["epoch"] == 6


def test_a_script_may_become_local_mode(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path / "run", save_every=6)
    checkpointer.checkpoint(6, model=small_model())
    checkpointer.wait()
    result = local_fit(
        Checkpointer(tmp_path / "run", continue_from="none", save_every=6), tmp_path / "notes"
    )
    assert Path(result.checkpoint.path).name == "checkpoint=6"


def test_local_mode_without_a_directory_uses_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    local_fit(Checkpointer(save_every=3), tmp_path / "notes", RunConfig())
    assert Checkpointer(tmp_path).list_existing_checkpoint_indices() == [3, 6]


def snapshot_of_ray(*names: str, without: str | None = None, **other: Any) -> str:
    """As Ray 2.60 writes it after reports of `names`, with what is `other`."""
    results = [{"version": 0, "checkpoint_dir_name": n, "metrics": {"loss": 0.5}} for n in names]
    whole = {
        "ray_version": ray.__version__,
        "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(names))),
        "latest_checkpoint_result": results[-1],
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": len(names),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
        **other,
    }
    return json.dumps({key: value for key, value in whole.items() if key != without})


def open_in_ray(directory: Path, content: str) -> list[str]:
    """The checkpoints that Ray itself takes from a snapshot."""
    storage = StorageContext(str(directory.parent), directory.name)
    (directory / "checkpoint_manager_snapshot.json").write_text(content)
    manager = CheckpointManager(CheckpointConfig(), storage)
    return [Path(result.checkpoint.path).name for result in manager._checkpoint_results]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cut or not JSON"),
        ('{"checkpoint_results": 3}', "cut or not JSON"),
        ('{"checkpoint_results": [{"checkpoint_dir_name": "checkpoint=77"}]}', "checkpoint=77"),
        (snapshot_of_ray("checkpoint=1", "checkpoint=77"), "checkpoint=77"),
        (snapshot_of_ray("checkpoint=1", without="current_report_index"), "cannot read it"),
        (snapshot_of_ray("checkpoint=1", without="pending_training_results"), "cannot read it"),
        (
            snapshot_of_ray("checkpoint=1", without="current_report_index", ray_version="1.2.3"),
            "written by Ray 1.2.3",
        ),
        (
            snapshot_of_ray(
                "checkpoint=1",
                latest_checkpoint_result={"checkpoint_dir_name": "checkpoint=2", "metrics": {}},
            ),
            "does not agree with itself",
        ),
        (snapshot_of_ray("checkpoint=1", checkpoint_report_indices=[]), "does not agree"),
        (snapshot_of_ray("checkpoint=1", pending_validation_specs=[True]), "does not agree"),
    ],
)
def test_a_broken_snapshot_of_ray_is_set_aside(
    trained: Any, content: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Ray overwrites it in place, and could not start again with it."""
    directory = trained(2)
    with pytest.raises(Exception):  # noqa: B017 - Ray has many ways to refuse it
        open_in_ray(directory, content)
    snapshot = directory / "checkpoint_manager_snapshot.json"
    snapshot.write_text(content)
    config = Checkpointer(directory).run_config()
    assert (config.storage_path, config.name) == (str(directory.parent), directory.name)
    assert not snapshot.exists()
    (aside,) = directory.glob("checkpoint_manager_snapshot.json.*.aside")
    assert aside.read_text() == content
    assert reason in caplog.text


def test_a_sound_snapshot_of_ray_stays(trained: Any) -> None:
    directory = trained(2)
    snapshot = directory / "checkpoint_manager_snapshot.json"
    content = snapshot_of_ray("checkpoint=1", "checkpoint=2")
    assert open_in_ray(directory, content) == ["checkpoint=1", "checkpoint=2"]
    snapshot.write_text(content)
    Checkpointer(directory).run_config()
    assert snapshot.read_text() == content
    assert not list(directory.glob("*.aside"))


def test_orphans_that_ray_does_not_know_are_counted_by_prune(trained: Any) -> None:
    directory = trained(4)
    snapshot = directory / "checkpoint_manager_snapshot.json"
    snapshot.write_text(snapshot_of_ray("checkpoint=1", "checkpoint=2"))
    checkpointer = Checkpointer(directory)
    assert checkpointer.prune(keep_last=2) == [1, 2]
    assert checkpointer.list_existing_checkpoint_indices() == [3, 4]
    checkpointer.run_config()
    assert not snapshot.exists(), "Ray would refuse it now"


def test_run_config_takes_everything_but_another_storage(tmp_path: Path) -> None:
    failures = FailureConfig(max_failures=7)
    config = Checkpointer(tmp_path / "run").run_config(failure_config=failures)
    assert config.failure_config is failures
    with pytest.raises(ValueError, match="name"):
        Checkpointer(tmp_path / "run").run_config(name="other")
    with pytest.raises(ValueError, match="parent"):
        Checkpointer("/").run_config()
    assert Checkpointer().run_config(name="x").name == "x"


def test_a_fsspec_directory_is_the_storage_of_the_run(tmp_path: Path) -> None:
    config = Checkpointer(f"memory://{tmp_path.name}/runs/a").run_config()
    assert (config.storage_path, config.name) == (f"/{tmp_path.name}/runs", "a")
    assert config.storage_filesystem.type_name == "py::fsspec+memory"
