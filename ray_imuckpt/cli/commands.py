"""The commands: each computes values, prints them, and returns the exit status."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ray_imuckpt.cli import (
    checking,
    comparison,
    contents,
    exporting,
    listing,
    pruning,
    series,
    structured,
    terminal,
    text,
)
from ray_imuckpt.cli.weights import Weights
from ray_imuckpt.directory import CheckpointDirectory
from ray_imuckpt.errors import CheckpointNotFoundError
from ray_imuckpt.options import Retention
from ray_imuckpt.storage import Storage, absolute, open_storage

Command = Callable[[argparse.Namespace], int]
"""Takes the options that `ray_imuckpt.cli.parser` understood, and returns the exit status."""


def _ls(options: argparse.Namespace) -> int:
    CheckpointDirectory(options.dir)  # refuses a checkpoint directory
    overview = listing.listing(_storage(options))
    if options.json:
        terminal.say([structured.dumps(overview)])
    else:
        terminal.say(text.of_listing(overview))
    if overview.problem:
        terminal.complain(
            f"which of them are of abandoned branches is not known: {overview.problem}"
        )
    return 2 if overview.problem else 0


def _show(options: argparse.Namespace) -> int:
    loaded = CheckpointDirectory(options.dir).read(options.epoch)
    facts = contents.facts(loaded)
    if options.json:
        terminal.say([structured.dumps({"manifest": facts, "parts": contents.parts(loaded)})])
        return 0
    terminal.say(text.of_facts(facts))
    terminal.say(text.of_parts(contents.parts(loaded)))
    return 0


def _verify(options: argparse.Namespace) -> int:
    directory = CheckpointDirectory(options.dir)
    epochs = options.epoch or _epochs(directory)
    verdicts = checking.verdicts(directory, epochs, listed=not options.epoch)
    read = []
    for verdict in verdicts:
        read.append(verdict)
        if not options.json:  # at once: a checkpoint may take minutes
            terminal.say([text.of_verdict(verdict)])
    if options.json:
        terminal.say([structured.dumps({"checkpoints": read})])
    return checking.status(verdict.state for verdict in read)


def _prune(options: argparse.Namespace) -> int:
    _epochs(CheckpointDirectory(options.dir))
    best = (*options.keep_best, options.best_count or 1) if options.keep_best else None
    rules = Retention(keep_last=options.keep_last, keep_every=options.keep_every, keep_best=best)
    pruned = pruning.prune(_storage(options), rules, dry_run=options.dry_run)
    terminal.say([structured.dumps(pruned)] if options.json else text.of_pruned(pruned))
    return 0


def _export(options: argparse.Namespace) -> int:
    loaded = CheckpointDirectory(options.dir).read(options.epoch)
    weights = Weights(_storage(options), loaded)
    exported = exporting.export(weights, options.file, options.max_shard_size)
    terminal.say([text.of_exported(exported)])
    return 0


def _diff(options: argparse.Namespace) -> int:
    directory = CheckpointDirectory(options.dir)
    first, second = directory.read(options.first), directory.read(options.second)
    compared = comparison.compare(_storage(options), first, second)
    terminal.say([structured.dumps(compared)] if options.json else text.of_comparison(compared))
    return 1 if compared.differences else 0


def _plot(options: argparse.Namespace) -> int:
    directory = CheckpointDirectory(options.dir)
    curve = series.series(directory, _epochs(directory), options.metric)
    for verdict in curve.unread:
        terminal.complain(verdict.problem)
    if not curve.points:
        raise ValueError(f"no checkpoint has a finite number for the metric {options.metric!r}")
    if options.json:
        terminal.say([structured.dumps(curve)])
    else:
        terminal.say(text.of_series(curve, terminal.width()))
    return checking.status(verdict.state for verdict in curve.unread)


COMMANDS: dict[str, Command] = {
    "ls": _ls,
    "show": _show,
    "verify": _verify,
    "prune": _prune,
    "export": _export,
    "diff": _diff,
    "plot": _plot,
}


def _storage(options: argparse.Namespace) -> Storage:
    return open_storage(absolute(options.dir))


def _epochs(directory: CheckpointDirectory) -> list[int]:
    """Return the epochs of all checkpoints.

    Raises:
        CheckpointNotFoundError: There are none.
    """
    epochs = directory.list_existing_checkpoint_indices()
    if not epochs:
        raise CheckpointNotFoundError(
            "There are no checkpoints.", url=directory.dir, hint="Look at the directory's name."
        )
    return epochs
