"""Train on a Ray Train gang: checkpoints named by epoch, Ray knows each of them.

python examples/ray_train_ddp.py --workers 2
python examples/ray_train_ddp.py --workers 8 --gpu --dir s3://my-bucket/runs/digits
python examples/ray_train_ddp.py --workers 0        # Ray's local mode: in this process
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from ray.train import CheckpointConfig, FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_data_loader, prepare_model
from torch.utils.data import DataLoader

from digits import accuracy, digits, network
from ray_imuckpt import Checkpointer, PlateauDetector
from ray_imuckpt.schedules import Exponential


def train_loop(config: dict[str, Any]) -> None:
    """Runs on every worker of the gang."""
    torch.manual_seed(0)
    train, _ = digits()
    loader = prepare_data_loader(DataLoader(train, batch_size=64, shuffle=True))
    model = prepare_model(network())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    plateau = PlateauDetector(Exponential(1e-3, 0.7), patience=3)

    checkpointer: Checkpointer = config["checkpointer"]
    model, optimizer, log, start_epoch, _ = checkpointer.start(model, optimizer, plateau=plateau)
    for epoch in range(start_epoch, config["epochs"] + 1):
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(epoch)
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        mean = mean_of_ranks(total / len(loader))
        if plateau.step(mean):
            plateau.adjust(optimizer)
        log.append({"epoch": epoch, "loss": mean})
        checkpointer.checkpoint(
            epoch,
            model=model,
            optimizer=optimizer,
            log=log,
            plateau=plateau,
            metrics={"epoch": epoch, "loss": mean},
            last=epoch == config["epochs"],
        )


def mean_of_ranks(value: float) -> float:
    """What steers the learning rate must be the same on every worker."""
    if not torch.distributed.is_initialized():  # Ray's local mode
        return value
    total = torch.tensor(value, device=get_device())
    torch.distributed.all_reduce(total)
    return total.item() / torch.distributed.get_world_size()


def main() -> None:
    """Train, then test the last checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", default="runs/digits")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--smoke", action="store_true", help="three epochs in Ray's local mode")
    options = parser.parse_args()
    if options.smoke:
        options.workers, options.epochs = 0, 3

    checkpointer = Checkpointer(options.dir, continue_from="last")
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"checkpointer": checkpointer, "epochs": options.epochs},
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=options.gpu),
        run_config=checkpointer.run_config(
            failure_config=FailureConfig(max_failures=3),
            checkpoint_config=CheckpointConfig(
                num_to_keep=3, checkpoint_score_attribute="loss", checkpoint_score_order="min"
            ),
        ),
    )
    result = trainer.fit()
    metrics = result.metrics or {}
    print(f"last loss {metrics['loss']:.4f}, checkpoint {result.checkpoint}")

    model = checkpointer.load(network(), checkpointer.index_of_last_checkpoint())
    print(f"accuracy on held-out digits: {accuracy(model, digits()[1]):.1%}")


if __name__ == "__main__":
    main()
