"""After a run went back, "last" never picks what it left behind, and nothing of that is deleted."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from conftest import adamw, small_model, train
from ray_imuckpt import Checkpointer
from ray_imuckpt.loading.targets import Targets
from ray_imuckpt.storage.local import LocalStorage


def test_going_back_abandons_what_came_after(tmp_path: Path) -> None:
    """The last checkpoint is the branch's own, also where an abandoned one has a higher number."""
    train(tmp_path, 6)
    _, _, log, first = train(tmp_path, 4, continue_from=3)
    assert first == 4
    checkpointer = Checkpointer(tmp_path)
    assert checkpointer.index_of_last_checkpoint() == 4
    assert checkpointer.list_existing_checkpoint_indices() == [1, 2, 3, 4, 5, 6]
    assert checkpointer.index_of_last_checkpoint_prior_to(6) == 4
    _, _, log, first = train(tmp_path, 5)
    assert first == 5
    assert checkpointer.index_of_last_checkpoint() == 5
    assert [entry["epoch"] for entry in log] == [1, 2, 3, 4, 5]


def test_a_run_that_ended_before_its_first_save_abandons_nothing(tmp_path: Path) -> None:
    """Only a commit begins a branch."""
    train(tmp_path, 3)
    Checkpointer(tmp_path).start(small_model(), continue_from=1)
    Checkpointer(tmp_path).start(small_model(), continue_from="none")
    assert Checkpointer(tmp_path).index_of_last_checkpoint() == 3


def test_beginning_anew_abandons_everything(tmp_path: Path) -> None:
    """What is there stays, and is not what the next run goes on from."""
    train(tmp_path, 4)
    train(tmp_path, 2, continue_from="none")
    assert Checkpointer(tmp_path).index_of_last_checkpoint() == 2
    assert Checkpointer(tmp_path).list_existing_checkpoint_indices() == [1, 2, 3, 4]


def test_when_only_abandoned_checkpoints_are_left_that_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Training begins from scratch, and not in silence; they can be asked for by number."""
    train(tmp_path, 3)
    train(tmp_path, 1, continue_from="none")
    shutil.rmtree(tmp_path / "checkpoint=1")
    model = small_model()
    assert Checkpointer(tmp_path).start(model, adamw(model)).start_epoch == 1
    assert "left behind (2, 3)" in caplog.text
    assert Checkpointer(tmp_path).start(model, adamw(model), continue_from=3).start_epoch == 4


def test_going_back_to_an_abandoned_branch_makes_it_the_present_one(tmp_path: Path) -> None:
    """The branch that was left is the abandoned one now."""
    train(tmp_path, 6)
    train(tmp_path, 3, continue_from=2)
    _, _, log, first = train(tmp_path, 7, continue_from=6)
    assert first == 7
    catalog = Checkpointer(tmp_path)._catalog()
    assert list(catalog.current_branch()) == [7, 6, 5, 4, 2, 1], "3 is of the branch that was left"
    assert catalog.last_prior_to(4) == 2
    assert [entry["epoch"] for entry in log] == [1, 2, 3, 4, 5, 6, 7]


def test_the_parent_and_the_ancestors_are_recorded(tmp_path: Path) -> None:
    """Each manifest says which save it came from, and which branches before it."""
    train(tmp_path, 2)
    train(tmp_path, 3)
    train(tmp_path, 4, continue_from=2)
    one, two, four = (Checkpointer(tmp_path).read(e).manifest for e in (1, 2, 4))
    assert one.parent is None
    assert two.parent == one.origin
    three = Checkpointer(tmp_path).read(3).manifest
    assert (three.parent, four.parent) == (two.origin, three.origin)
    assert [(a.run_id, a.epoch) for a in four.ancestors] == [(one.run_id, 2)]
    assert four.run_id == three.run_id != one.run_id


def test_prune_leaves_abandoned_branches_alone(tmp_path: Path) -> None:
    """And what the current branch was resumed from."""
    train(tmp_path, 6)
    train(tmp_path, 4, continue_from=3)
    assert Checkpointer(tmp_path).prune(keep_last=1) == [1, 2], "3 was resumed from"
    assert Checkpointer(tmp_path).list_existing_checkpoint_indices() == [3, 4, 5, 6]


def test_prune_goes_on_past_what_another_process_has_just_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is gone already is no error."""
    train(tmp_path, 4)
    real = LocalStorage.get

    def get(self: LocalStorage, name: str) -> bytes:
        if name == "checkpoint=4/manifest.json":
            shutil.rmtree(tmp_path / "checkpoint=4")
        return real(self, name)

    monkeypatch.setattr(LocalStorage, "get", get)
    assert Checkpointer(tmp_path).prune(keep_every=2) == [1]
    assert Checkpointer(tmp_path).list_existing_checkpoint_indices() == [2, 3]


def test_a_damaged_newest_checkpoint_is_abandoned_by_the_run_that_passes_it_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is warned of once, and not again after the next save."""
    train(tmp_path, 6)
    (tmp_path / "checkpoint=6" / "manifest.json").write_bytes(b"")
    next((tmp_path / "checkpoint=5").glob("model-*")).write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert train(tmp_path, 5)[3] == 5
    assert "checkpoint=6" in caplog.text
    assert "checkpoint=5" in caplog.text
    caplog.clear()
    assert train(tmp_path, 5)[3] == 6
    assert caplog.text == "", "5 was saved again, 6 is left behind: nothing to warn of"


def test_a_restarted_gang_falls_back_within_its_own_run(tmp_path: Path) -> None:
    """continue_from="none" was for the first attempt; a damaged one does not bring it back."""
    from ray_imuckpt.gang import Gang
    from ray_imuckpt.loading import selection
    from ray_imuckpt.storage import open_storage

    train(tmp_path, 3)
    run_id = Checkpointer(tmp_path).read(3).manifest.run_id
    next((tmp_path / "checkpoint=3").glob("model-*")).write_bytes(b"")
    storage = open_storage(str(tmp_path))
    model = small_model()
    targets = Targets(model, adamw(model))
    found = selection.restore(Gang(), storage, "none", run_id, targets, strict=True)
    assert found is not None
    assert found.checkpoint.epoch == 2
    assert not found.foreign
    other = selection.restore(Gang(), storage, "none", "another run", targets, strict=True)
    assert other is None
