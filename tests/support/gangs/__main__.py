"""Plays stories on the ranks of gloo gangs, each in a directory of its own.

    python -m support.gangs DIRECTORY STORY,STORY STORY,STORY      a gang of two for each list

Where torchrun has started this process, it is one rank of the one gang that there is.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from support.forking import import_all, on_ranks
from support.gangs import errors, layouts, meetings, owners, policies, shards, stories, values

RANKS = 2
TOPICS = (stories, errors, layouts, meetings, owners, policies, shards, values)


def play(directory: Path, names: list[str], rank: int) -> None:
    """Play stories one after the other; what came of each is a file in its directory."""
    for name in names:
        here = directory / name
        here.mkdir(exist_ok=True, parents=True)
        try:
            story = next(vars(topic)[name] for topic in TOPICS if name in vars(topic))
            story(here / "run", rank)
        except BaseException:
            (here / f"failed-on-rank-{rank}").write_text(traceback.format_exc())
            raise
        if dist.is_initialized():
            dist.barrier()
        (here / f"passed-on-rank-{rank}").touch()
    if dist.is_initialized():
        dist.destroy_process_group()


def main(directory: Path, gangs: list[list[str]]) -> None:
    """Play the stories of each gang."""
    if "RANK" in os.environ:
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        play(directory, gangs[0], int(os.environ["RANK"]))
        return
    import_all()
    for number, names in enumerate(gangs):

        def join(rank: int) -> None:
            store = dist.FileStore(str(directory / f"store-{number}"), RANKS)  # noqa: B023
            dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
            play(directory, names, rank)  # noqa: B023

        on_ranks(RANKS, join)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [names.split(",") for names in sys.argv[2:]])
