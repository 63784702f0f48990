"""A training function for Ray Train in which Lightning owns the loop.

The workers alone import Lightning, not the driver and Ray's controller: it takes seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ray_imuckpt import Checkpointer


def loop(config: dict[str, Any]) -> None:
    """Fit on this rank."""
    import ray.train.lightning as by_ray

    from support.runs import lightning_gang

    callback = lightning_gang.fit(
        config["checkpointer"],
        config["dies"],
        by_ray.prepare_trainer,
        strategy=by_ray.RayDDPStrategy(),
        plugins=[by_ray.RayLightningEnvironment()],
        devices="auto",
    )
    if ray.train.get_context().get_world_rank() == 0:
        Path(config["note"]).write_text(str(callback.resumed_from))


def fit(checkpointer: Checkpointer, note: Path, dies: Path, run_config: RunConfig) -> Any:
    """Run it on two workers."""
    return TorchTrainer(
        loop,
        train_loop_config={"checkpointer": checkpointer, "note": note, "dies": dies},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=run_config,
    ).fit()
