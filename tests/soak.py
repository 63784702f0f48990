"""Long campaigns, run by `make soak`: Ray Train runs that are killed, or lose a node."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
import torch
from ray.cluster_utils import Cluster
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model
from torch import nn

from conftest import HERE, adamw, python_path, same_bytes, small_model, start_ray
from ray_imuckpt import Checkpointer
from test_examples import run_smoke


def drive(where: Path, last: int, **environment: str) -> subprocess.Popen[str]:
    """A driver in a process group of its own."""
    where.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, str(HERE / "rayruns.py"), str(where), str(last)],
        env={**os.environ, "PYTHONPATH": python_path(), **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def told_by(driver: subprocess.Popen[str]) -> dict[str, Any]:
    out, errors = driver.communicate(timeout=300)
    assert driver.returncode == 0, errors[-3000:]
    return json.loads(out.split("told ")[1])


def kill_driver(driver: subprocess.Popen[str]) -> None:
    """Kill a driver with SIGKILL, and the Ray that it had started."""
    driver.kill()
    driver.communicate()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(driver.pid, signal.SIGKILL)


def wait_for(what: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


KILLS = 20


def gang_after(where: Path, before: set[str]) -> set[str]:
    """The process ids of the workers, once both have started that were not there before."""
    now: set[str] = set()

    def up() -> bool:
        now.clear()
        now.update(pid.read_text() for pid in where.glob("pid-*"))
        return len(now) == 2 and not now & before

    wait_for(up)
    return now


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Workers, and now and then the driver, by SIGKILL at moments drawn at random."""
    seed = int(os.environ.get("SOAK_SEED", time.time_ns() % 1_000_000))
    print(f"SOAK_SEED={seed}")
    draw = random.Random(seed)
    last = 6 * KILLS
    whole = told_by(drive(tmp_path / "whole", last))
    where = tmp_path / "killed"
    where.mkdir()
    (where / "hold").touch()
    driver = drive(where, last, PAUSE="0.5")
    before: set[str] = set()
    for kill in range(1, KILLS + 1):
        before = gang_after(where, before)
        time.sleep(draw.uniform(0, 3))
        assert driver.poll() is None
        if kill % 6 == 0:
            kill_driver(driver)
            driver = drive(where, last, PAUSE="0.5")
        else:
            os.kill(int(draw.choice(sorted(before))), signal.SIGKILL)
        done = Checkpointer(where / "run").index_of_last_checkpoint()
        print(f"kill {kill} of {KILLS}: epoch {done} was committed", flush=True)
    (where / "hold").unlink()
    told = told_by(driver)
    assert told["log"] == list(range(1, last + 1))
    assert told["digest"] == whole["digest"]
    for epoch in told["epochs"]:
        Checkpointer(where / "run").verify(epoch)


@pytest.mark.slow
def test_a_driver_that_is_killed_and_started_again_ends_as_if_it_had_not_been(
    tmp_path: Path,
) -> None:
    whole = told_by(drive(tmp_path / "whole", 6))
    where = tmp_path / "killed"
    (tmp_path / "killed").mkdir()
    (where / "hold").touch()
    driver = drive(where, 6)
    wait_for((where / "run" / "checkpoint=5" / "manifest.json").exists)
    kill_driver(driver)
    snapshot = where / "run" / "checkpoint_manager_snapshot.json"
    if snapshot.exists():  # as if it had been killed while it wrote
        snapshot.write_bytes(snapshot.read_bytes()[:-20])
    (where / "hold").unlink()
    told = told_by(drive(where, 6))
    assert told["digest"] == whole["digest"]
    assert told["epochs"] == whole["epochs"] == [1, 2, 3, 4, 5, 6]
    assert told["registered"].endswith("checkpoint=6")


def loop(config: dict[str, Any]) -> None:
    """Train until a file says that the gang may end."""
    model = prepare_model(small_model())
    optimizer = adamw(model)
    checkpointer: Checkpointer = config["checkpointer"]
    started = checkpointer.start(model, optimizer)
    context = ray.train.get_context()
    notes = Path(config["notes"])
    size, rank = context.get_world_size(), context.get_world_rank()
    node = ray.get_runtime_context().get_node_id()
    (notes / f"of-{size}-rank-{rank}").write_text(f"{node} {started.start_epoch}")
    for epoch in range(started.start_epoch, 7):
        checkpointer.checkpoint(
            epoch, model=model, optimizer=optimizer, log=[*started.log, epoch],
            metrics={"epoch": epoch},
        )  # fmt: skip
        started.log.append(epoch)
        while size == 2 and epoch == 4:
            time.sleep(0.2)  # until the node is gone


@pytest.mark.slow
def test_a_gang_over_two_nodes_loses_one_and_goes_on_smaller(tmp_path: Path) -> None:
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        doomed = cluster.add_node(num_cpus=1)
        start_ray(cluster.address)
        cluster.wait_for_nodes()
        notes = tmp_path / "notes"
        notes.mkdir()
        checkpointer = Checkpointer(tmp_path / "runs" / "elastic")

        def lose_the_node() -> None:
            wait_for(Path(checkpointer.path_to_checkpoint(4), "manifest.json").exists)
            cluster.remove_node(doomed, allow_graceful=False)

        losing = threading.Thread(target=lose_the_node)
        losing.start()
        result = TorchTrainer(
            loop,
            train_loop_config={"checkpointer": checkpointer, "notes": str(notes)},
            scaling_config=ScalingConfig(num_workers=(1, 2), resources_per_worker={"CPU": 1}),
            run_config=checkpointer.run_config(failure_config=FailureConfig(max_failures=3)),
        ).fit()
        losing.join()
    finally:
        ray.shutdown()
        cluster.shutdown()
    nodes = {(notes / f"of-2-rank-{rank}").read_text().split()[0] for rank in (0, 1)}
    assert len(nodes) == 2, "the first gang was spread over two nodes"
    assert (notes / "of-1-rank-0").read_text().split()[1] == "5"
    assert checkpointer.list_existing_checkpoint_indices() == [1, 2, 3, 4, 5, 6]
    assert checkpointer.read().log == [1, 2, 3, 4, 5, 6]
    assert result.checkpoint.path.endswith("checkpoint=6")
    assert [checkpointer.read(epoch).manifest.world_size for epoch in (4, 5)] == [2, 1]
    assert same_bytes(checkpointer.read(4).model, checkpointer.read(6).model)


@pytest.mark.slow
def test_an_experiment_whose_driver_was_killed_is_restored_with_all_its_trials(
    tmp_path: Path,
) -> None:
    """Epoch 3 lasts until a file is there, so that the kill meets trials in their middle."""
    script = tmp_path / "driver.py"
    script.write_text(
        textwrap.dedent("""
            import json, logging, sys, time
            from pathlib import Path
            import ray, ray.tune, torch
            from torch import nn
            from ray_imuckpt import Checkpointer

            where = Path(sys.argv[1])

            def trial(config):
                torch.manual_seed(1)
                model = nn.Linear(2, 2)
                checkpointer = Checkpointer()
                started = checkpointer.start(model)
                log = started.log + [started.start_epoch]
                for epoch in range(started.start_epoch, 6):
                    with torch.no_grad():
                        model.weight.add_(torch.randn(2, 2))
                    checkpointer.checkpoint(epoch, model=model, log=log, metrics={"epoch": epoch})
                    while epoch == 3 and not (where / "go").exists():
                        time.sleep(0.1)

            ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False,
                     logging_level=logging.ERROR)
            space = {"x": ray.tune.grid_search([1, 2])}
            if ray.tune.Tuner.can_restore(str(where / "exp")):
                tuner = ray.tune.Tuner.restore(str(where / "exp"), trial, param_space=space)
            else:
                tuner = ray.tune.Tuner(trial, param_space=space, run_config=ray.tune.RunConfig(
                    storage_path=str(where), name="exp", verbose=0))
            results = tuner.fit()
            assert not results.errors
            told = []
            for result in results:
                best = Checkpointer.of_result(result)
                told.append([best.list_existing_checkpoint_indices(), best.read().log,
                             float(best.load(nn.Linear(2, 2)).weight.sum())])
            print("told", json.dumps(told), flush=True)
        """)
    )
    environment = {**os.environ, "TUNE_GLOBAL_CHECKPOINT_S": "1"}
    command = [sys.executable, str(script), str(tmp_path)]
    first = subprocess.Popen(
        command, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("exp/trial_*/checkpoint=3/manifest.json"))) < 2:
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    time.sleep(3)  # Tune notes the state of the experiment now and then
    first.kill()
    first.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(first.pid, signal.SIGKILL)  # the Ray that it had started
    (tmp_path / "go").touch()
    second = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert second.returncode == 0, second.stderr[-3000:]
    told = json.loads(second.stdout.split("told ")[1])
    torch.manual_seed(1)
    reference = nn.Linear(2, 2).weight.detach()
    for _ in range(5):
        reference = reference + torch.randn(2, 2)
    for epochs, log, total in told:
        assert epochs == [1, 2, 3, 4, 5]
        # Ray's workers outlive their driver for a moment: epoch 4 may have been committed by then.
        assert log in ([1, 4], [1, 5]), "it went on from what was committed"
        assert total == float(reference.sum())


@pytest.mark.slow
def test_kill_and_resume_ends_with_the_weights_of_an_uninterrupted_run(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    printed = run_smoke("kill_and_resume.py", tmp_path, directory)
    assert "with SIGKILL" in printed
    assert "weights equal, bit for bit: yes" in printed
    assert re.search(r"epochs in log: +\[1, 2, 3, 4, 5\]$", printed, re.MULTILINE), printed
    for run in ("uninterrupted", "killed"):
        checkpointer = Checkpointer(directory / run)
        assert checkpointer.list_existing_checkpoint_indices() == [1, 2, 3, 4, 5]
        assert [entry["epoch"] for entry in checkpointer.read().log] == [1, 2, 3, 4, 5]
