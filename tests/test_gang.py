"""Gangs of gloo processes that torchrun starts; what each rank does is in support/gangs/."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import train
from ray_imuckpt import Checkpointer
from support.programs import run_program
from support.schema import check_all

STORIES = [
    [
        "ddp_resumes_bit_identically",
        "collectives_move_bytes_of_any_size",
        "fallback_is_taken_by_all",
        "every_rank_keeps_layouts",
        "what_differs_between_ranks_is_told_once",
        "one_rank_is_told_to_go",
        "the_ranks_meet_seldom",
    ],
    [
        "fsdp2_is_gathered_in_full",
        "zero_redundancy_optimizer",
        "storage_is_read_on_rank_zero_only",
        "a_rank_that_fails_is_not_waited_for_in_a_gathering",
    ],
    [
        "tensors_that_differ_are_named",
        "values_that_differ_are_an_error",
        "each_rank_has_a_stage_of_its_own",
        "what_is_in_per_rank_may_differ",
        "buffers_are_rank_zeros",
    ],
    [
        "fsdp1_is_refused",
        "a_rank_that_fails_alone_stops_a_sharded_save",
        "a_rank_that_fails_alone_stops_a_sharded_restore",
        "one_rank_may_load_alone",
        "all_checkpointers_share_one_group",
        "no_thread_of_a_group_outlives_its_end",
    ],
    [
        "every_rank_gets_the_same_error",
        "what_does_not_fit_changes_nothing_on_any_rank",
        "what_one_rank_does_not_save_is_an_error_on_all",
        "a_rank_that_was_not_there",
        "a_script_without_a_process_group",
    ],
]


@pytest.mark.slow
@pytest.mark.parametrize("names", STORIES, ids=lambda names: names[0])
def test_a_gang_of_two(tmp_path: Path, names: list[str]) -> None:
    """Both ranks play each story to its end, and every manifest they leave fits the schema."""
    train(tmp_path / "a_rank_that_was_not_there" / "run", 2)
    result = run_program("support.gangs.stories", tmp_path, *names, ranks=2, timeout=240)
    failures = "\n".join(f.read_text() for f in sorted(tmp_path.glob("*/failed-on-rank-*")))
    assert not failures, failures
    assert result.returncode == 0, result.stderr[-3000:]
    for name in names:
        for rank in (0, 1):
            assert (tmp_path / name / f"passed-on-rank-{rank}").exists(), f"{name} did not run"
        if name != "fallback_is_taken_by_all":  # which damages one
            check_all(tmp_path / name)


@pytest.mark.slow
def test_a_gang_ends_well_with_its_checkpointers(tmp_path: Path) -> None:
    """A Checkpointer at the top of a script outlives `main`; its group must not outlive Python."""
    result = run_program("support.gangs.ending", tmp_path / "run", ranks=4, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]
    assert Checkpointer(tmp_path / "run").list_existing_checkpoint_indices() == [1]
