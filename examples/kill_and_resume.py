"""The demo: a worker is killed in mid-training, and nothing is lost.

Two runs of the same training, each a gang of two workers on Ray Train. In the second one, rank 1 is
killed with SIGKILL; Ray restarts the gang, and training resumes from the last committed checkpoint.

    python examples/kill_and_resume.py            # about two minutes on two cores
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
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
BEGAN = time.monotonic()
PAUSE = 0.01  # seconds after each step: digits are small, this leaves time to watch, and to kill


def say(text: str = "", end: str = "\n") -> None:
    """Print at once, also while Ray's own words go to a file."""
    print(text, end=end, file=SCREEN, flush=True)


def event(text: str, end: str = "\n") -> None:
    """Print what has happened, with the seconds since the demonstration began."""
    say(f"{time.monotonic() - BEGAN:7.1f} s  {text}", end)


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
    model, optimizer, log, start_epoch, _ = checkpointer.start(model, optimizer)
    rank = ray.train.get_context().get_world_rank()
    tell(Path(config["workers"], str(rank)), f"{os.getpid()} {start_epoch}")
    for epoch in range(start_epoch, config["epochs"] + 1):
        sampler.set_epoch(epoch)
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
            time.sleep(PAUSE)
        log.append({"epoch": epoch, "loss": total / len(loader), "resumed_from": start_epoch - 1})
        checkpointer.checkpoint(
            epoch, model=model, optimizer=optimizer, log=log, metrics={"loss": total / len(loader)}
        )


def tell(file: Path, text: str) -> None:
    """Write a file as a whole: the driver looks at it at any time."""
    draft = file.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(file)


class Watcher(threading.Thread):
    """Tells what a run does, as the driver sees it in storage, and kills rank 1 when told to.

    Args:
        checkpointer: The run's.
        workers: The directory in which each worker tells its process and its first epoch.
        kill_after: The epoch after whose commit rank 1 is killed, if it is to be.
    """

    def __init__(self, checkpointer: Checkpointer, workers: Path, kill_after: int | None) -> None:
        super().__init__()
        self.checkpointer, self.workers, self.kill_after = checkpointer, workers, kill_after
        self.ended = threading.Event()
        self.gang: list[list[str]] = []
        self.shown = 0
        self.open = False  # whether a line of commits goes on
        self.start()

    def run(self) -> None:
        """Look until the run has ended, and once more."""
        last = False
        while not last:
            last = self.ended.is_set()
            self._look()
            time.sleep(0.05)
        self._line()

    def _look(self) -> None:
        told = [file.read_text().split() for file in sorted(self.workers.glob("[01]"))]
        processes = {process for process, _ in told}
        if len(processes) == 2 and not processes & {process for process, _ in self.gang}:
            again = f": they resume from checkpoint={int(told[0][1]) - 1}" if self.gang else ""
            self.gang = told
            self._line(
                f"workers {' and '.join(p for p, _ in told)} begin with epoch {told[0][1]}{again}"
            )
        newest = self.checkpointer.index_of_last_checkpoint() or 0
        for epoch in range(self.shown + 1, newest + 1):
            if not self.open:
                event("committed:", end="")
            self.open, self.shown = True, epoch
            say(f" {epoch}", end="")
        if self.kill_after is not None and newest >= self.kill_after:
            self.kill_after = None
            time.sleep(PAUSE * 5)  # into the middle of the next epoch
            victim = int(self.gang[1][0])
            os.kill(victim, signal.SIGKILL)
            self._line(f"rank 1 (process {victim}) is killed with SIGKILL; {newest} was committed")

    def _line(self, text: str | None = None) -> None:
        if self.open:
            say()
        self.open = False
        if text:
            event(text)


def run(directory: Path, epochs: int, kill_after: int | None) -> Checkpointer:
    """One run; rank 1 is killed once the checkpoint of epoch `kill_after` is there."""
    checkpointer = Checkpointer(directory, continue_from="last", save_every=1)
    workers = Path(tempfile.mkdtemp())
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={
            "checkpointer": checkpointer,
            "epochs": epochs,
            "workers": str(workers),
        },
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=checkpointer.run_config(failure_config=FailureConfig(max_failures=2)),
    )
    watcher = Watcher(checkpointer, workers, kill_after)
    try:
        trainer.fit()
    finally:
        watcher.ended.set()
        watcher.join()
    if watcher.kill_after is not None:
        raise SystemExit("The training ended before a worker could be killed; try again.")
    return checkpointer


def span(numbers: list[int]) -> str:
    """Numbers in words: ``1 to 5`` if they are that, each once and in order."""
    whole = bool(numbers) and numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]} to {numbers[-1]}, each once" if whole else str(numbers)


def compare(calm: Checkpointer, rough: Checkpointer) -> bool:
    """Print what is left of both runs, side by side; whether their weights are the same."""
    _, held_out = digits()
    columns = []
    for checkpointer in (calm, rough):
        log = checkpointer.read().log
        model = checkpointer.load(network())
        weights = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
        resumed = sorted({entry["resumed_from"] for entry in log} - {0})
        columns.append(
            [
                span(checkpointer.list_existing_checkpoint_indices()),
                span([entry["epoch"] for entry in log]),
                f"epoch {resumed[0]}" if resumed else "-",
                f"{accuracy(model, held_out):.1%}",
                f"{hashlib.sha256(weights).hexdigest()[:16]}, {len(weights):,} bytes",
            ]
        )
    titles = ["checkpoints", "epochs in the log", "resumed from", "digits named rightly", "weights"]
    say(f"\n{'what is left':24}{'uninterrupted':32}killed and resumed")
    for title, one, other in zip(titles, *columns, strict=True):
        say(f"{title:24}{one:32}{other}")
    same = columns[0][-1] == columns[1][-1]
    say(f"\nweights equal, bit for bit: {'yes' if same else 'no'}")
    return same and columns[0][:2] == columns[1][:2] and columns[1][2] != "-"


def main() -> None:
    """Train twice, kill once, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=None, help="default: a temporary directory")
    parser.add_argument("--smoke", action="store_true", help="fewer epochs")
    options = parser.parse_args()
    epochs, kill_after = (5, 2) if options.smoke else (12, 5)
    directory = options.dir or Path(tempfile.mkdtemp(prefix="kill-and-resume-"))

    say(f"The same training twice: {epochs} epochs on two workers of Ray Train, a save after each.")
    event("Ray starts on this machine")
    directory.mkdir(parents=True, exist_ok=True)
    words = directory / "what-ray-said.txt"  # a killed worker makes Ray talk at length
    with words.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        ray.init(
            num_cpus=3, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR
        )
        logging.getLogger("ray").setLevel(logging.ERROR)
        say("\nfirst run: nothing interrupts it")
        calm = run(directory / "uninterrupted", epochs, None)
        say("\nsecond run: rank 1 is killed in mid-training")
        rough = run(directory / "killed", epochs, kill_after)
        ray.shutdown()
    same = compare(calm, rough)
    say(f"Done in {time.monotonic() - BEGAN:.0f} s. The checkpoints are in {directory},")
    say(f"what Ray said meanwhile in {words.name} there.")
    if not same:
        raise SystemExit("The runs differ: that is a defect.")


if __name__ == "__main__":
    main()
