"""Experiments of Ray Tune whose driver is killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from torch import nn


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
