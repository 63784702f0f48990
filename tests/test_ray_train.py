"""Ray Train: gangs that lose a worker, Ray's own records of them, pointers to elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig

import ray_imuckpt
from conftest import python_path, same_bytes, small_model
from ray_imuckpt import Checkpointer
from support.gangs.spread import stored
from support.programs import run_program
from support.runs import ray_shards
from support.runs.ray_loop import fit


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_gang_whose_rank_1_is_killed_goes_on_from_the_newest_committed_checkpoint(
    tmp_path: Path,
) -> None:
    """A restart trains each epoch once, and ends with the very bytes of an unbroken run."""
    directory = tmp_path / "runs" / "gang"
    checkpointer = Checkpointer(directory)
    result = fit(
        tmp_path / "notes",
        checkpointer,
        2,
        checkpointer.run_config(
            failure_config=FailureConfig(max_failures=1),
            checkpoint_config=CheckpointConfig(
                num_to_keep=3, checkpoint_score_attribute="loss", checkpoint_score_order="min"
            ),
        ),
        die_before_report=3,
        again=True,
    )
    whole = Checkpointer(tmp_path / "whole")  # of two processes without Ray
    ended = run_program("support.runs.whole_gang", whole.dir)
    assert ended.returncode == 0, ended.stderr[-3000:]
    for part in ("model", "optimizer", "ranks", "other"):
        assert same_bytes(getattr(checkpointer.read(6), part), getattr(whole.read(6), part)), part

    for rank in (0, 1):  # epoch 3 was committed and not reported: not trained again
        assert (tmp_path / "notes" / f"starts-{rank}").read_text().split() == ["1", "4"]
        # the save of an epoch that Ray knew already failed, and every rank was told
        assert (tmp_path / "notes" / f"lost-{rank}").exists()
    assert checkpointer.read(6).log == [1, 2, 3, 4, 5, 6, "saved again"], "each epoch exactly once"
    assert checkpointer.read(6).metrics["loss"] == 0.0

    # Ray's own records: 3 was adopted, the worst went, what is left can be opened.
    assert result.metrics["epoch"] == 6
    assert result.checkpoint.path == str(directory / "checkpoint=6")
    kept = {Path(c.path).name: m["loss"] for c, m in result.best_checkpoints}
    assert kept == {"checkpoint=2": 0.1, "checkpoint=5": 0.2, "checkpoint=6": 0.6}
    assert checkpointer.list_existing_checkpoint_indices() == [2, 5, 6]
    snapshot = json.loads((directory / "checkpoint_manager_snapshot.json").read_text())
    assert len(snapshot["checkpoint_results"]) == 3

    # Loadable in a fresh process, through Ray's type and through ours.
    script = (
        "import sys, torch, ray_imuckpt\n"
        "from conftest import small_model\n"
        "with ray_imuckpt.Checkpointer(sys.argv[1]).get(6).as_directory() as local:\n"
        "    model = ray_imuckpt.load(small_model(9), local)\n"
        "print(model.state_dict()['0.weight'].sum().item())\n"
    )
    environment = {**os.environ, "PYTHONPATH": python_path()}
    printed = subprocess.run(
        [sys.executable, "-c", script, str(directory)],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert float(printed) == checkpointer.read(6).model["0.weight"].sum().item()
    by_ray = ray_imuckpt.load(small_model(8), result.checkpoint)
    assert same_bytes(dict(by_ray.state_dict()), dict(checkpointer.read(6).model))

    # Another fit() of the same directory: continue_from speaks of its first start only.
    again = Checkpointer(directory, continue_from=checkpointer.get(2))
    result = fit(
        tmp_path / "notes-2",
        again,
        1,
        again.run_config(failure_config=FailureConfig(max_failures=1)),
        raise_at=4,
    )
    assert (tmp_path / "notes-2" / "starts-0").read_text().split() == ["3", "4"]
    assert again.read(6).log == [1, 2, 3, 4, 5, 6]
    assert list(directory.glob("checkpoint_manager_snapshot.json.*.aside"))
    names = sorted(Path(c.path).name for c, _ in result.best_checkpoints)
    assert names == [f"checkpoint={e}" for e in (2, 3, 4, 5, 6)], "2 adopted, the rest reported"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_runs_own_storage_and_a_directory_elsewhere(tmp_path: Path) -> None:
    """Without `dir` checkpoints are in Ray's storage; with one, Ray gets pointers to it."""
    own = Checkpointer(save_every=3)
    result = fit(
        tmp_path / "notes", own, 1, RunConfig(storage_path=str(tmp_path / "results"), name="own")
    )
    assert Checkpointer(tmp_path / "results" / "own").list_existing_checkpoint_indices() == [3, 6]
    assert result.checkpoint.path == str(tmp_path / "results" / "own" / "checkpoint=6")
    assert result.metrics["epoch"] == 6

    elsewhere = Checkpointer(tmp_path / "elsewhere", save_every=3)
    result = fit(
        tmp_path / "notes-2",
        elsewhere,
        1,
        RunConfig(storage_path=str(tmp_path / "results"), name="pointers"),
    )
    assert elsewhere.list_existing_checkpoint_indices() == [3, 6]
    pointer = tmp_path / "results" / "pointers" / "checkpoint=6"
    assert [file.name for file in pointer.iterdir()] == ["imuckpt-pointer.json"]
    model = ray_imuckpt.load(small_model(4), result.checkpoint)
    assert same_bytes(dict(model.state_dict()), dict(elsewhere.read(6).model))
    assert Checkpointer(pointer.parent).list_existing_checkpoint_indices() == []


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_sharded_gang_is_killed_while_it_writes_and_goes_on_larger(tmp_path: Path) -> None:
    """With FSDP2 on an elastic gang: the same run in the same size, the same state in another."""
    directory, notes = tmp_path / "runs" / "shards", tmp_path / "notes"
    checkpointer = Checkpointer(directory)
    result = ray_shards.fit(notes, checkpointer)

    # Of epoch 3 all bytes were there, and no receipt of rank 1: it was trained again.
    starts = [(notes / f"starts-{rank}").read_text().split() for rank in range(3)]
    assert starts == [["2:1", "2:3", "3:5"], ["2:1", "2:3", "3:5"], ["3:5"]]
    assert checkpointer.list_existing_checkpoint_indices() == [1, 2, 3, 4, 5, 6]
    assert checkpointer.read(6).log == [1, 2, 3, 4, 5, 6]
    before = stored(directory, 4)
    for rank in range(2):
        whole, random = torch.load(notes / f"whole-{rank}.pt")
        assert same_bytes(before, whole)
        assert same_bytes(checkpointer.read(4).ranks[rank]["random"]["torch"], random)
    for rank in range(3):
        assert same_bytes(torch.load(notes / f"resumed-{rank}.pt"), before)

    for epoch, size in ((4, 2), (6, 3)):
        manifest = checkpointer.read(epoch).manifest
        assert manifest.world_size == size
        for part in ("model", "optimizer", "state"):
            assert {file.rank for file in manifest.files_of(part, "safetensors")} == {*range(size)}
        checkpointer.verify(epoch)
    assert result.metrics["epoch"] == 6
    assert result.checkpoint.path == str(directory / "checkpoint=6")
