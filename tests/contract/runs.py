"""The contract of a storage, from the outside: a run is saved on it, resumed, loaded and pruned."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from conftest import adamw, same_bytes, small_model
from contract.subjects import Subject
from ray_imuckpt import Checkpointer, CheckpointNotFoundError


def checkpointer_on(subject: Subject) -> Checkpointer:
    """Return a Checkpointer of the directory, as another process would make one."""
    if subject.url is not None:
        return Checkpointer(subject.url, blocking=True, storage_options=subject.options)
    made = Checkpointer(blocking=True)
    made._opened = subject.again()  # as Ray's session hands it over
    return made


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Train a little."""
    loss = model(torch.randn(16, 4)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


class RunContract:
    """What a user of the storage relies on."""

    def test_a_run_is_saved_resumed_loaded_and_pruned(self, subject: Subject) -> None:
        """Every byte comes back, in another process's eyes; what is pruned is gone."""
        model = small_model()
        optimizer = adamw(model)
        run = checkpointer_on(subject)
        assert run.start(model, optimizer).start_epoch == 1
        models = {}
        for epoch in (1, 2, 2):
            step(model, optimizer)
            run.checkpoint(epoch, model=model, optimizer=optimizer, log=[epoch] * 1000)
            models[epoch] = {name: value.clone() for name, value in model.state_dict().items()}
        again = small_model(1)
        other = adamw(again)
        resumed = checkpointer_on(subject)
        started = resumed.start(again, other)
        assert (started.start_epoch, started.log) == (3, [2] * 1000)
        assert same_bytes(dict(again.state_dict()), models[2])
        assert same_bytes(other.state_dict(), optimizer.state_dict())
        reader, alone = checkpointer_on(subject), small_model(2)
        for epoch in (1, 2):
            reader.load(alone, epoch)
            assert same_bytes(dict(alone.state_dict()), models[epoch])
            reader.verify(epoch)
        assert resumed.prune(keep_last=1) == [1]
        assert reader.list_existing_checkpoint_indices() == [2]
        assert "checkpoint=2/manifest.json" in subject.side.names()
        assert not [name for name in subject.side.names() if name.startswith("checkpoint=1/")]
        with pytest.raises(CheckpointNotFoundError):
            reader.load(alone, 1)
        assert subject.side.unfinished() == 0
