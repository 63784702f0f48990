"""The demo: a worker is killed in mid-training, and nothing is lost.

Two runs of the same training, each a gang of two workers on Ray Train. In the second one, rank 1 is
killed with SIGKILL; Ray restarts the gang, and training resumes from the last committed checkpoint.

    python examples/kill_and_resume.py            # about two minutes on two cores
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "120")
warnings.filterwarnings("ignore", category=FutureWarning)

import ray
import torch
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model
from torch.utils.data import DataLoader

from digits import accuracy, digits, network
from ray_imuckpt import Checkpointer

SCREEN = sys.stdout


def say(text: str = "") -> None:
    """Print at once, also while Ray's own words go to a file."""
    print(text, file=SCREEN, flush=True)


def train_loop(config: dict[str, Any]) -> None:
    """Runs on every worker of the gang."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    train, _ = digits()
    loader = prepare_data_loader(DataLoader(train, batch_size=32, shuffle=True))
    sampler: Any = loader.sampler  # a DistributedSampler, Ray's doing
    model = prepare_model(network())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    checkpointer: Checkpointer = config["checkpointer"]
    rank = ray.train.get_context().get_world_rank()
    Path(config["pids"], f"rank-{rank}").write_text(str(os.getpid()))

    model, optimizer, log, start_epoch, _ = checkpointer.start(model, optimizer)
    for epoch in range(start_epoch, config["epochs"] + 1):
        sampler.set_epoch(epoch)
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
            time.sleep(config["pause"])  # digits are small: leaves time to watch, and to kill
        log.append({"epoch": epoch, "loss": total / len(loader), "resumed_from": start_epoch - 1})
        checkpointer.checkpoint(
            epoch, model=model, optimizer=optimizer, log=log, metrics={"loss": total / len(loader)}
        )


def watch(
    checkpointer: Checkpointer, epochs: int, stop: threading.Event, at: Callable[[int], None]
) -> None:
    """Show the newest committed checkpoint, as the driver sees it in storage."""
    shown = 0
    while True:
        ended = stop.is_set()
        newest = checkpointer.index_of_last_checkpoint() or 0
        if newest > shown:
            bar = "#" * round(30 * newest / epochs)
            say(f"    [{bar:<30}] checkpoint={newest} of {epochs}")
            shown = newest
            at(newest)
        if ended:
            return
        time.sleep(0.05)


def run(directory: Path, epochs: int, pause: float, kill_after: int | None) -> Checkpointer:
    """One run; rank 1 is killed once the checkpoint of epoch `kill_after` is there."""
    checkpointer = Checkpointer(directory, continue_from="last", save_every=1)
    pids = Path(tempfile.mkdtemp())
    killed = threading.Event()

    def kill(newest: int) -> None:
        if kill_after is not None and newest >= kill_after and not killed.is_set():
            killed.set()
            time.sleep(pause * 5)  # into the middle of the next epoch
            victim = int((pids / "rank-1").read_text())
            os.kill(victim, signal.SIGKILL)
            say(f"    killed rank 1 (process {victim}) with SIGKILL; Ray restarts the gang ...")

    trainer = TorchTrainer(
        train_loop,
        train_loop_config={
            "checkpointer": checkpointer,
            "epochs": epochs,
            "pause": pause,
            "pids": str(pids),
        },
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=checkpointer.run_config(failure_config=FailureConfig(max_failures=2)),
    )
    stop = threading.Event()
    watcher = threading.Thread(target=watch, args=(checkpointer, epochs, stop, kill))
    watcher.start()
    try:
        trainer.fit()
    finally:
        stop.set()
        watcher.join()
    if kill_after is not None and not killed.is_set():
        raise SystemExit("The training ended before a worker could be killed; try again.")
    return checkpointer


def main() -> None:
    """Train twice, kill once, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=None, help="default: a temporary directory")
    parser.add_argument("--smoke", action="store_true", help="fewer epochs")
    options = parser.parse_args()
    epochs, kill_after = (5, 2) if options.smoke else (12, 5)
    directory = options.dir or Path(tempfile.mkdtemp(prefix="kill-and-resume-"))
    began = time.monotonic()

    say("Starting Ray on this machine ...")
    directory.mkdir(parents=True, exist_ok=True)
    words = directory / "what-ray-said.txt"  # a killed worker makes Ray talk at length
    with words.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        ray.init(
            num_cpus=3, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR
        )
        logging.getLogger("ray").setLevel(logging.ERROR)
        say(f"\n1. A run of {epochs} epochs that nothing interrupts (2 workers, DDP):")
        calm = run(directory / "uninterrupted", epochs, 0.01, None)
        say("\n2. The same run again, but rank 1 is killed in mid-training:")
        rough = run(directory / "killed", epochs, 0.01, kill_after)
        ray.shutdown()

    say("\n3. What is left of the killed run, read by the driver:")
    found = rough.list_existing_checkpoint_indices()
    last = rough.index_of_last_checkpoint()
    log = rough.read(last).log
    say(f"    checkpoints:     {found}")
    say(f"    the last one:    {rough.path_to_last_checkpoint()}")
    say(f"    epochs in log:   {[entry['epoch'] for entry in log]}")
    resumed = sorted({entry["resumed_from"] for entry in log} - {0})
    say(f"    resumed from:    {resumed}")

    _, held_out = digits()
    first = calm.load(network(), calm.index_of_last_checkpoint())
    second = rough.load(network(), last)
    same = all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    say("\n    accuracy on 360 held-out digits")
    say(f"      uninterrupted:      {accuracy(first, held_out):.1%}")
    say(f"      killed and resumed: {accuracy(second, held_out):.1%}")
    say(f"      weights equal, bit for bit: {'yes' if same else 'no'}")
    say(f"\nDone in {time.monotonic() - began:.0f} s. The checkpoints are in {directory},")
    say(f"and what Ray said meanwhile in {words.name} there.")
    if [entry["epoch"] for entry in log] != list(range(1, epochs + 1)) or not resumed:
        raise SystemExit("The log does not hold every epoch exactly once.")


if __name__ == "__main__":
    main()
