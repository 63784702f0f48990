"""A gang of Ray Train that loses a node."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
from ray.cluster_utils import Cluster
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model

from conftest import adamw, same_bytes, small_model, start_ray
from drivers import wait_for
from ray_imuckpt import Checkpointer


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
    """It resumes on the node that is left, from the last commit, with the whole log."""
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
        elastic: Any = (1, 2)  # Ray's annotation knows of one number only
        result = TorchTrainer(
            loop,
            train_loop_config={"checkpointer": checkpointer, "notes": str(notes)},
            scaling_config=ScalingConfig(num_workers=elastic, resources_per_worker={"CPU": 1}),
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
    assert result.checkpoint is not None
    assert result.checkpoint.path.endswith("checkpoint=6")
    assert [checkpointer.read(epoch).manifest.world_size for epoch in (4, 5)] == [2, 1]
    assert same_bytes(checkpointer.read(4).model, checkpointer.read(6).model)
