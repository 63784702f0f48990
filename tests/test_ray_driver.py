"""A driver of Ray Train: configurations of runs, and Ray's memory of a directory, healed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train import CheckpointConfig, FailureConfig
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext

from ray_imuckpt import Checkpointer


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
    kept: list[Any] = manager._checkpoint_results
    return [Path(result.checkpoint.path).name for result in kept]


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
    """What Ray itself can open is left as it is."""
    directory = trained(2)
    snapshot = directory / "checkpoint_manager_snapshot.json"
    content = snapshot_of_ray("checkpoint=1", "checkpoint=2")
    assert open_in_ray(directory, content) == ["checkpoint=1", "checkpoint=2"]
    snapshot.write_text(content)
    Checkpointer(directory).run_config()
    assert snapshot.read_text() == content
    assert not list(directory.glob("*.aside"))


def test_orphans_that_ray_does_not_know_are_counted_by_prune(trained: Any) -> None:
    """Retention goes by what is committed; a snapshot that names what it deleted goes aside."""
    directory = trained(4)
    snapshot = directory / "checkpoint_manager_snapshot.json"
    snapshot.write_text(snapshot_of_ray("checkpoint=1", "checkpoint=2"))
    checkpointer = Checkpointer(directory)
    assert checkpointer.prune(keep_last=2) == [1, 2]
    assert checkpointer.list_existing_checkpoint_indices() == [3, 4]
    checkpointer.run_config()
    assert not snapshot.exists(), "Ray would refuse it now"


def test_run_config_takes_everything_but_another_storage(tmp_path: Path) -> None:
    """All keywords of a RunConfig pass through; a second name of the storage is refused."""
    failures = FailureConfig(max_failures=7)
    config = Checkpointer(tmp_path / "run").run_config(failure_config=failures)
    assert config.failure_config is failures
    with pytest.raises(ValueError, match="name"):
        Checkpointer(tmp_path / "run").run_config(name="other")
    with pytest.raises(ValueError, match="parent"):
        Checkpointer("/").run_config()
    assert Checkpointer().run_config(name="x").name == "x"
    assert Checkpointer(tmp_path / "run").run_config(name=None).name == "run"


@pytest.mark.parametrize(("wrong", "error"), [({"verbose": 1}, ValueError), ({"x": 1}, TypeError)])
def test_what_ray_refuses_changes_nothing(
    trained: Any, wrong: dict[str, Any], error: type[Exception]
) -> None:
    """It is a wrong argument, told in Ray's words, and Ray's memory of the directory stays."""
    directory = trained(1)
    snapshot = directory / "checkpoint_manager_snapshot.json"
    snapshot.write_bytes(b"cut")
    with pytest.raises(error, match=next(iter(wrong))):
        Checkpointer(directory).run_config(**wrong)
    assert snapshot.read_bytes() == b"cut"


def test_a_fsspec_directory_is_the_storage_of_the_run(tmp_path: Path) -> None:
    """Ray writes a URL's directory through the file system that we write through."""
    config = Checkpointer(f"memory://{tmp_path.name}/runs/a").run_config()
    assert (config.storage_path, config.name) == (f"/{tmp_path.name}/runs", "a")
    assert config.storage_filesystem.type_name == "py::fsspec+memory"
