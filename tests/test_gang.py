"""Gangs of gloo processes, started by torchrun or forked; what each rank does: support/gangs/."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest

from conftest import train
from ray_imuckpt import Checkpointer
from support.programs import run_program
from support.schema import check_all

UNDER_TORCHRUN = [
    "ddp_resumes_bit_identically",
    "collectives_move_bytes_of_any_size",
    "fallback_is_taken_by_all",
    "one_rank_is_told_to_go",
    "the_ranks_meet_seldom",
    "a_rank_that_was_not_there",
    "a_script_without_a_process_group",  # the last one: it ends the gang
]
FORKED = [
    [
        "a_run_begins_with_another_ones_checkpoint",
        "fsdp2_is_gathered_in_full",
        "zero_redundancy_optimizer",
        "storage_is_read_on_rank_zero_only",
        "a_rank_that_fails_is_not_waited_for_in_a_gathering",
        "every_rank_keeps_layouts",
        "every_rank_knows_its_piece",
        "each_piece_is_written_by_one_rank",
        "a_sum_that_is_spread_is_refused",
        "what_differs_between_ranks_is_told_once",
        "every_rank_gets_the_same_error",
        "what_does_not_fit_changes_nothing_on_any_rank",
        "what_one_rank_does_not_save_is_an_error_on_all",
    ],
    [
        "tensors_that_differ_are_named",
        "values_that_differ_are_an_error",
        "each_rank_has_a_stage_of_its_own",
        "what_is_in_per_rank_may_differ",
        "buffers_are_rank_zeros",
        "a_spread_state_takes_one_meeting_more",
        "failed_saves_are_tolerated_on_every_rank",
        "the_clock_of_rank_zero_decides",
        "rank_zero_deletes_what_no_rule_keeps",
    ],
    [
        "fsdp1_is_refused",
        "a_rank_that_fails_alone_stops_a_sharded_save",
        "a_rank_that_fails_alone_stops_a_sharded_restore",
        "one_rank_may_load_alone",
        "one_rank_loads_its_part_alone",
        "some_layouts_continue_from_others",
        "each_chunk_is_read_by_one_rank",
        "no_rank_makes_room_for_the_whole",
        "a_spread_optimizer_reads_what_it_steps",
        "objects_that_are_spread_are_read_by_parts",
        "what_one_rank_cannot_read_is_an_error_on_all",
        "all_checkpointers_share_one_group",
        "what_one_rank_alone_cannot_decode_is_passed_over_by_all",
        "what_is_not_on_all_ranks_of_its_mesh_is_refused",
        "two_sharded_models_and_an_average_are_the_same_run",
        "what_is_sharded_in_per_rank_goes_by_pieces",
        "no_rank_makes_room_for_the_whole_in_per_rank",
        "a_spread_optimizer_by_keyword_goes_by_parts",
        "a_spread_optimizer_in_per_rank_stays_with_its_ranks",
        "no_thread_of_a_group_outlives_its_end",
    ],
    [
        "every_rank_writes_its_own_files",
        "frozen_files_are_not_written_again",
        "training_goes_on_while_ranks_copy",
        "what_one_rank_cannot_write_nobody_commits",
        "a_save_that_one_rank_fails_may_be_tolerated",
        "a_rank_that_is_late_is_named",
        "ranks_that_see_other_storage",
        "a_large_replicated_state_is_shared_out",
        "ranks_that_write_together_meet_seldom",
        "a_sharded_gang_that_is_told_to_go_is_resumed",
        "a_spread_optimizer_is_not_brought_together",
    ],
]
DAMAGED = {"fallback_is_taken_by_all", "a_run_begins_with_another_ones_checkpoint"}
OF_FOUR = [
    "every_layout_is_saved_and_comes_back",
    "some_layouts_continue_from_others",
    "what_some_ranks_need_goes_to_them_alone",
    "what_is_sharded_in_per_rank_goes_by_pieces",
    "stages_are_sharded_over_some_ranks",
]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which gangs of two, and one of four, have played all stories."""
    directory = tmp_path_factory.mktemp("gangs")
    train(directory / "a_rank_that_was_not_there" / "run", 2)
    lists = [*map(",".join, FORKED), f"4:{','.join(OF_FOUR)}"]
    run_program("support.gangs", directory, ",".join(UNDER_TORCHRUN), ranks=2)
    run_program("support.gangs", directory, *lists)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("name", [*UNDER_TORCHRUN, *chain(*FORKED)])
def test_a_story_comes_to_its_end_on_all_ranks(stage: Path, name: str) -> None:
    """It asserts what must hold; and every manifest that it has left fits the schema."""
    failures = "\n".join(file.read_text() for file in sorted((stage / name).glob("failed-*")))
    assert not failures, failures
    for rank in range(4 if stage.name == "4" else 2):
        assert (stage / name / f"passed-on-rank-{rank}").exists(), "one before it has failed"
    if name not in DAMAGED:
        check_all(stage / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_FOUR)
def test_a_story_comes_to_its_end_on_four_ranks(stage: Path, name: str) -> None:
    """As on two."""
    test_a_story_comes_to_its_end_on_all_ranks(stage / "4", name)


@pytest.mark.slow
def test_a_gang_ends_well_with_its_checkpointers(tmp_path: Path) -> None:
    """A Checkpointer at the top of a script outlives `main`; its group must not outlive Python."""
    result = run_program("support.gangs.ending", tmp_path / "run", ranks=4)
    assert result.returncode == 0, result.stderr[-3000:]
    assert Checkpointer(tmp_path / "run").list_existing_checkpoint_indices() == [1]
