"""Promise 10: what `prune` keeps, and what it never deletes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import small_model, train
from ray_imuckpt import Checkpointer


def test_prune_keeps_what_the_rules_keep(trained: Any) -> None:
    """What any rule keeps stays, and a dry run deletes nothing."""
    directory = trained(9)
    checkpointer = Checkpointer(directory)
    metrics = {e: checkpointer.read(e).metrics["loss"] for e in range(1, 10)}
    best = min(metrics, key=lambda e: metrics[e])
    rules: dict[str, Any] = {"keep_last": 2, "keep_every": 4, "keep_best": ("loss", "min")}
    keep = {8, 9, 4, best}
    doomed = [e for e in range(1, 10) if e not in keep]
    assert checkpointer.prune(**rules, dry_run=True) == doomed
    assert checkpointer.list_existing_checkpoint_indices() == list(range(1, 10))
    assert checkpointer.prune(**rules) == doomed
    assert checkpointer.list_existing_checkpoint_indices() == sorted(keep)


def test_prune_never_removes_what_this_run_was_resumed_from(tmp_path: Path) -> None:
    """The way back to where this run began stays open."""
    train(tmp_path, 3)
    checkpointer = Checkpointer(tmp_path)
    model = small_model()
    checkpointer.start(model)
    for epoch in (4, 5):
        checkpointer.checkpoint(epoch, model=model)
    assert checkpointer.prune(keep_last=1) == [1, 2, 4]
    assert Checkpointer(tmp_path).prune(keep_last=1) == [], "another process knows it as well"


def test_prune_never_removes_the_newest_sound_one_nor_where_this_run_came_from(
    trained: Any,
) -> None:
    """A damaged newest one does not count as a reason to delete."""
    directory = trained(5)
    data = next((directory / "checkpoint=5").glob("model-*.safetensors"))
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    assert Checkpointer(directory).prune(keep_last=1) == [1, 2, 3], "5 is damaged: 4 stays"
    checkpointer = Checkpointer(directory, continue_from=4)
    checkpointer.start(small_model())
    assert 4 in checkpointer.list_existing_checkpoint_indices()
    assert checkpointer.prune(keep_every=100) == [5]
