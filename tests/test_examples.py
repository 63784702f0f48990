"""Every example runs as its reader would run it: as a script, in a process of its own."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import same_bytes
from ray_imuckpt import Checkpointer
from support.programs import HANGS

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLES = REPOSITORY / "examples"


def run_smoke(name: str, cwd: Path, directory: Path) -> str:
    """See `run_example`."""
    return run_example(name, cwd, directory, "--smoke")


def run_example(name: str, cwd: Path, directory: Path, *options: str) -> str:
    """What the example printed, run from `cwd` with its checkpoints in `directory`."""
    path = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name), "--dir", str(directory), *options],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANGS,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def epochs_trained(printed: str) -> list[int]:
    return [int(epoch) for epoch in re.findall(r"^epoch +(\d+) ", printed, re.MULTILINE)]


def test_every_example_is_run_below() -> None:
    """And kill_and_resume.py by `make demo`; soak/ray_kills.py looks at what it prints."""
    runnable = {path.name for path in EXAMPLES.glob("*.py") if "argparse" in path.read_text()}
    tested = {
        "imu_attitude.py",
        "kill_and_resume.py",
        "preemption.py",
        "quickstart.py",
        "ray_train_ddp.py",
        "ray_tune_asha.py",
        "ray_tune_pbt.py",
    }
    assert runnable == tested


def test_quickstart_resumes_when_it_is_run_again(tmp_path: Path) -> None:
    """Nothing is trained twice, and what was lost is trained again."""
    directory = tmp_path / "run"
    checkpointer = Checkpointer(directory)

    first = run_smoke("quickstart.py", tmp_path, directory)
    assert epochs_trained(first) == [1, 2, 3]
    assert checkpointer.list_existing_checkpoint_indices() == [1, 2, 3]
    summary = f"3 epochs in the log; last checkpoint: {checkpointer.path_to_last_checkpoint()}"
    assert summary in first

    nothing_left = run_smoke("quickstart.py", tmp_path, directory)
    assert epochs_trained(nothing_left) == []
    assert summary in nothing_left

    shutil.rmtree(directory / "checkpoint=3")  # as if it had been stopped in its third epoch
    resumed = run_smoke("quickstart.py", tmp_path, directory)
    assert epochs_trained(resumed) == [3]
    assert summary in resumed
    assert resumed.splitlines()[0] == first.splitlines()[2], "the third epoch has another loss"


def test_quickstart_is_under_40_lines_and_does_not_import_ray() -> None:
    """The smallest example needs nothing but torch and this package."""
    source = (EXAMPLES / "quickstart.py").read_text()
    assert len(source.splitlines()) < 40
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert "ray_imuckpt" in imported
    assert "ray" not in imported


def test_imu_attitude_learns_and_tests_its_last_checkpoint(tmp_path: Path) -> None:
    """The network beats a tuned filter, is read from its own checkpoint, and a picture shows it."""
    directory, picture = tmp_path / "run", tmp_path / "curves.svg"
    printed = run_example("imu_attitude.py", tmp_path, directory, "--smoke", f"--picture={picture}")
    checkpointer = Checkpointer(directory)
    assert epochs_trained(printed) == [1, 2, 3, 4, 5, 6]
    assert checkpointer.list_existing_checkpoint_indices() == [5, 6]
    assert f"The network is that of {checkpointer.path_to_last_checkpoint()}" in printed

    last = checkpointer.read(6)
    assert [entry["epoch"] for entry in last.log] == [1, 2, 3, 4, 5, 6]
    assert last.log[-1]["loss"] < last.log[0]["loss"]
    assert set(last.other) == {"plateau"}

    degrees = dict(re.findall(r"^  ([a-z ]+): +(\d+\.\d+)$", printed, re.MULTILINE))
    assert set(degrees) == {"accelerometer alone", "complementary filter", "network"}
    assert float(degrees["network"]) < 0.9 * float(degrees["complementary filter"])
    assert float(degrees["complementary filter"]) < float(degrees["accelerometer alone"])
    assert "<svg" in picture.read_text()


@pytest.mark.slow
def test_ray_train_ddp_gives_ray_each_checkpoint(tmp_path: Path) -> None:
    """Ray's result names the last one, and the model has learned."""
    directory = tmp_path / "run"
    printed = run_smoke("ray_train_ddp.py", tmp_path, directory)
    checkpointer = Checkpointer(directory)
    assert checkpointer.list_existing_checkpoint_indices() == [1, 2, 3]
    assert [entry["epoch"] for entry in checkpointer.read().log] == [1, 2, 3]
    result = re.search(r"checkpoint Checkpoint\(.*path=(\S+)\)", printed)
    assert result is not None, printed
    assert result[1] == checkpointer.path_to_last_checkpoint()
    accuracy = re.search(r"accuracy on held-out digits: (\d+\.\d)%", printed)
    assert accuracy is not None, printed
    assert float(accuracy[1]) > 50.0, "three epochs name most digits rightly; chance is 10 %"


def test_preemption_goes_on_at_the_next_batch_of_the_same_epoch(tmp_path: Path) -> None:
    """No batch is lost or repeated, and the end is that of an uninterrupted run, byte for byte."""
    interrupted = tmp_path / "interrupted"
    first = run_smoke("preemption.py", tmp_path, interrupted)
    assert "told to go in epoch 3 behind batch 5: saved" in first
    assert Checkpointer(interrupted).list_existing_checkpoint_indices() == [1, 2]
    second = run_smoke("preemption.py", tmp_path, interrupted)
    assert "epoch 3, batch 6: here it begins" in second
    ended = Checkpointer(interrupted).read()
    assert [epoch for epoch, _ in ended.log] == [1] * 16 + [2] * 16 + [3] * 16 + [4] * 16
    run_example("preemption.py", tmp_path, tmp_path / "whole", "--epochs=4")
    whole = Checkpointer(tmp_path / "whole").read()
    for part in ("log", "model", "optimizer"):
        assert same_bytes(getattr(ended, part), getattr(whole, part)), part
    assert Checkpointer(interrupted).list_existing_checkpoint_indices() == [1, 2, 3, 4]


@pytest.mark.slow
def test_ray_tune_asha_tests_its_best_trial(tmp_path: Path) -> None:
    """Its last checkpoint is loaded and tested."""
    printed = run_smoke("ray_tune_asha.py", tmp_path, tmp_path / "asha")
    assert re.search(r"its last checkpoint: .*/asha/.*/checkpoint=[24]", printed), printed
    assert "accuracy on held-out digits: " in printed


@pytest.mark.slow
def test_ray_tune_pbt_tests_its_best_member(tmp_path: Path) -> None:
    """A member goes on from another's checkpoint, and the best one is loaded."""
    printed = run_smoke("ray_tune_pbt.py", tmp_path, tmp_path / "pbt")
    assert "from epoch 1 with learning rate" in printed
    assert re.search(r"last checkpoint: .*/pbt/.*/checkpoint=3", printed), printed
