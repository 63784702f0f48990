"""``snapshot="overlap"``: what it rests on, and that nothing of it stays behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import adamw, same_bytes, small_model, train
from ray_imuckpt import Checkpointer
from ray_imuckpt.staging.fence import Fence


def test_training_with_overlap_is_training_with_eager(tmp_path: Path) -> None:
    """The same numbers, in the model and in every checkpoint."""
    runs = {
        kind: train(tmp_path / kind, 6, snapshot=kind, save_every=2)
        for kind in ("eager", "overlap")
    }
    live = [[dict(o.state_dict()) for o in runs[kind][:2]] for kind in runs]
    assert same_bytes(*live)
    for epoch in (2, 4, 6):
        eager, overlap = (Checkpointer(tmp_path / kind).read(epoch) for kind in runs)
        assert same_bytes(eager.model, overlap.model)
        assert same_bytes(eager.optimizer, overlap.optimizer)
        assert same_bytes(eager.ranks, overlap.ranks)


def test_hooks_do_not_pile_up(tmp_path: Path) -> None:
    """A run of a million epochs has one hook for each optimizer."""
    model = small_model()
    optimizer = adamw(model)
    checkpointer = Checkpointer(tmp_path, snapshot="overlap")
    for epoch in range(1, 6):
        checkpointer.checkpoint(epoch, model=model, optimizer=optimizer)
        assert len(optimizer._optimizer_step_pre_hooks) == 1
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    checkpointer.wait()


def test_tensors_of_inference_mode_are_copied_at_once() -> None:
    """They count no versions, so that a change would go unseen."""
    with torch.inference_mode():
        frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    live = nn.Parameter(torch.ones(2))
    fence = Fence([torch.optim.SGD([live])])
    assert fence.covers(live)
    assert not fence.covers(frozen)
    assert not fence.covers(live[1:])


def test_version_counters_still_count() -> None:
    """The second net rests on a private name of torch's."""
    tensor = torch.zeros(2)
    before = tensor.detach()._version
    tensor.add_(1)
    assert tensor.detach()._version == before + 1


@pytest.mark.parametrize("value", ["lazy", None, 1, True])
def test_an_unknown_snapshot_is_an_error_at_construction(value: Any) -> None:
    """It is told on the driver, before any worker is started."""
    with pytest.raises(ValueError, match="'eager' or 'overlap'"):
        Checkpointer(snapshot=value)
