"""The commands that look at directories only: as those of `commands`, but without torch.

They answer in the time that Python takes to start, and not in the seconds that torch takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ray_imuckpt.cli import (
    completion,
    directories,
    listing,
    naming,
    pruning,
    runs,
    structured,
    terminal,
    text_listing,
)
from ray_imuckpt.cli.rows import RunsBelow
from ray_imuckpt.errors import located
from ray_imuckpt.options import Retention
from ray_imuckpt.repository import paths
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.storage import Storage


def _ls(options: argparse.Namespace) -> int:
    storage = directories.run_directory(options.dir)
    with located(storage.url):
        found = None if _is_run(storage) and not options.runs else _below(storage, options)
    return _ls_run(storage, options) if found is None else _ls_runs(found, options)


def _ls_run(storage: Storage, options: argparse.Namespace) -> int:
    if options.sort:
        raise ValueError(
            f"--sort puts runs in order, and {storage.url} is one, whose checkpoints are told by "
            "epoch. Name the directory above it."
        )
    overview = listing.listing(storage, options.best)
    if options.json:
        terminal.say([structured.dumps({"kind": "run", **vars(overview)})])
    else:
        terminal.say(text_listing.of_listing(overview))
    if overview.problem:
        terminal.complain(
            f"which of them are of abandoned branches is not known: {overview.problem}"
        )
    return 2 if overview.problem else 0


def _ls_runs(below: RunsBelow, options: argparse.Namespace) -> int:
    if options.json:
        terminal.say([structured.dumps({"kind": "runs", **vars(below)})])
    else:
        terminal.say(text_listing.of_runs(below, options.best))
    return 0


def _prune(options: argparse.Namespace) -> int:
    storage, _ = directories.run_with_checkpoints(options.dir)
    best = (*options.keep_best, options.best_count or 1) if options.keep_best else None
    rules = Retention(keep_last=options.keep_last, keep_every=options.keep_every, keep_best=best)
    pruned = pruning.prune(storage, rules, dry_run=options.dry_run)
    terminal.say([structured.dumps(pruned)] if options.json else text_listing.of_pruned(pruned))
    return 0


def _clean(options: argparse.Namespace) -> int:
    storage = directories.run_directory(options.dir)
    with located(storage.url):
        if not _is_run(storage) and "" not in directories.runs_below(storage, 2):
            raise directories.nothing(storage)
    cleaned = pruning.clean(storage, options.older_than, dry_run=options.dry_run)
    terminal.say([structured.dumps(cleaned)] if options.json else text_listing.of_cleaned(cleaned))
    return 0


def _completion(options: argparse.Namespace) -> int:
    terminal.say([completion.script(options.shell)])
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "ls": _ls,
    "prune": _prune,
    "clean": _clean,
    "completion": _completion,
}


def _is_run(storage: Storage) -> bool:
    """Return whether a directory holds checkpoints itself.

    Raises:
        CheckpointNotFoundError: There is no such directory.
        StorageError: It is a checkpoint, or cannot be listed.
    """
    try:
        names = storage.holding(paths.MANIFEST)
    except FileNotFoundError as error:
        raise directories.missing(storage) from error
    if "" in names:  # a checkpoint is refused, another program's file is not
        return bool(Catalog(storage).committed())
    return any(paths.parse_checkpoint_name(name) is not None for name in names)


def _below(storage: Storage, options: argparse.Namespace) -> RunsBelow | None:
    """Return the runs below a directory; ``None``: it is to be shown as a run itself."""
    below = directories.runs_below(storage, directories.LEVELS)
    alone = not below or (below.keys() == {""} and not below[""].pointers)
    return (
        None
        if alone and not options.runs
        else runs.rows_of(storage, below, options.best, options.sort or naming.NAME)
    )
