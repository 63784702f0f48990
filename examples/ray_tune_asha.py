"""Tune the learning rate with ASHA: every trial has its own checkpoints, the best one is tested.

python examples/ray_tune_asha.py --dir runs/asha --trials 8
python examples/ray_tune_asha.py --dir runs/asha --trials 8     # killed? again: trials go on

A trial that fails is tried again and resumes from its newest checkpoint. What Tune copies is a
pointer of some hundred bytes; the tensors are written once, into the trial's directory.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from torch.utils.data import DataLoader

from digits import accuracy, digits, network
from ray_imuckpt import Checkpointer


def trial(config: dict[str, Any]) -> None:
    """One trial; no `dir`: its checkpoints go to the trial's own storage."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    train, held_out = digits()
    loader = DataLoader(train, batch_size=config["batch"], shuffle=True)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"], momentum=0.9)

    checkpointer = Checkpointer(save_every=2)
    model, optimizer, log, start_epoch, _ = checkpointer.start(model, optimizer)
    for epoch in range(start_epoch, config["epochs"] + 1):
        for images, labels in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        right = accuracy(model, held_out)
        log.append({"epoch": epoch, "accuracy": right})
        checkpointer.checkpoint(
            epoch, model=model, optimizer=optimizer, log=log,
            metrics={"accuracy": right, "epoch": epoch},
        )  # fmt: skip
        checkpointer.prune(keep_last=2)


def main() -> None:
    """Tune, then test the best trial's last checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", default="runs/asha")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--smoke", action="store_true", help="two trials of four epochs")
    options = parser.parse_args()
    if options.smoke:
        options.trials, options.epochs = 2, 4

    directory = Path(options.dir).absolute()
    ray.init(log_to_driver=False)
    if tune.Tuner.can_restore(str(directory)):
        tuner = tune.Tuner.restore(str(directory), trial, resume_errored=True)
    else:
        tuner = tune.Tuner(
            trial,
            param_space={
                "lr": tune.loguniform(1e-4, 1e-1),
                "batch": tune.choice([32, 64]),
                "epochs": options.epochs,
            },
            tune_config=tune.TuneConfig(
                num_samples=options.trials,
                scheduler=tune.schedulers.ASHAScheduler(
                    metric="accuracy", mode="max", time_attr="epoch",
                    max_t=options.epochs, grace_period=2,
                ),
            ),
            run_config=tune.RunConfig(
                storage_path=str(directory.parent), name=directory.name, verbose=1,
                failure_config=tune.FailureConfig(max_failures=2),
            ),
        )  # fmt: skip
    results = tuner.fit()

    best = results.get_best_result("accuracy", "max")
    checkpointer = Checkpointer.of_result(best)
    model = checkpointer.load(network())
    config = best.config or {}
    print(f"best learning rate {config['lr']:.4g}")
    print(f"its last checkpoint: {checkpointer.path_to_last_checkpoint()}")
    print(f"accuracy on held-out digits: {accuracy(model, digits()[1]):.1%}")


if __name__ == "__main__":
    main()
