"""Population based training: the worse half goes on from the better half's checkpoints.

python examples/ray_tune_pbt.py --dir runs/pbt --members 4

Tune hands a member another one's checkpoint; `start` restores it. The learning rate that Tune has
changed in the config is the one that counts: it goes before that of the restored optimizer.
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


def member(config: dict[str, Any]) -> None:
    """One member of the population."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    train, held_out = digits()
    loader = DataLoader(train, batch_size=64, shuffle=True)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"], momentum=0.9)

    checkpointer = Checkpointer()
    model, optimizer, log, start_epoch, _ = checkpointer.start(model, optimizer)
    log.append({"from_epoch": start_epoch, "lr": optimizer.param_groups[0]["lr"]})
    for epoch in range(start_epoch, config["epochs"] + 1):
        for images, labels in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        checkpointer.checkpoint(
            epoch, model=model, optimizer=optimizer, log=log,
            metrics={"accuracy": accuracy(model, held_out), "epoch": epoch},
        )  # fmt: skip


def main() -> None:
    """Train the population, then test its best member."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", default="runs/pbt")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--smoke", action="store_true", help="two members, three epochs")
    options = parser.parse_args()
    if options.smoke:
        options.members, options.epochs = 2, 3

    directory = Path(options.dir).absolute()
    ray.init(log_to_driver=False)
    results = tune.Tuner(
        member,
        param_space={"lr": tune.loguniform(1e-4, 1e-1), "epochs": options.epochs},
        tune_config=tune.TuneConfig(
            num_samples=options.members,
            metric="accuracy",
            mode="max",
            reuse_actors=True,
            scheduler=tune.schedulers.PopulationBasedTraining(
                time_attr="epoch",
                perturbation_interval=2,
                quantile_fraction=0.5,
                synch=True,
                hyperparam_mutations={"lr": tune.loguniform(1e-4, 1e-1)},
            ),
        ),
        run_config=tune.RunConfig(
            storage_path=str(directory.parent), name=directory.name, verbose=1
        ),
    ).fit()

    best = results.get_best_result()
    checkpointer = Checkpointer.of_result(best)
    model = checkpointer.load(network())
    for entry in checkpointer.read().log:
        print(f"from epoch {entry['from_epoch']} with learning rate {entry['lr']:.4g}")
    print(f"last checkpoint: {checkpointer.path_to_last_checkpoint()}")
    print(f"accuracy on held-out digits: {accuracy(model, digits()[1]):.1%}")


if __name__ == "__main__":
    main()
