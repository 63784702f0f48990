"""Plays stories on the ranks of gloo gangs, each in a directory of its own.

    python -m support.gangs DIRECTORY STORY,STORY 4:STORY,STORY    a gang of two, and one of four

Where torchrun has started this process, it is one rank of the one gang that there is.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from support.forking import import_all, on_ranks

RANKS = 2
_NAMES = (
    *("beside", "errors", "layouts", "meetings", "owners", "pairs", "policies", "reading"),
    *("room", "shards", "spread", "stories", "together", "values"),
)
TOPICS = [importlib.import_module(f"support.gangs.{name}") for name in _NAMES]


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


def main(directory: Path, gangs: list[str]) -> None:
    """Play the stories of each gang."""
    if "RANK" in os.environ:
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
        play(directory, gangs[0].split(","), int(os.environ["RANK"]))
        return
    import_all()
    for number, gang in enumerate(gangs):
        size, _, names = gang.rpartition(":")
        on_ranks(int(size or RANKS), partial(_join, directory, number, int(size or RANKS), names))


def _join(directory: Path, number: int, ranks: int, names: str, rank: int) -> None:
    store = dist.FileStore(str(directory / f"store-{number}"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    play(directory if ranks == RANKS else directory / str(ranks), names.split(","), rank)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
