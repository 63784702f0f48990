"""The commands: each computes values, prints them, and returns the exit status."""

from __future__ import annotations

import argparse
import posixpath
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
    targets,
    terminal,
    text,
)
from ray_imuckpt.cli.naming import Name
from ray_imuckpt.cli.weights import Weights
from ray_imuckpt.directory import CheckpointDirectory
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.options import Retention

Command = Callable[[argparse.Namespace], int]
"""Takes the options that `ray_imuckpt.cli.parser` understood, and returns the exit status."""


def _ls(options: argparse.Namespace) -> int:
    overview = listing.listing(targets.run_directory(options.dir))
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
    loaded = _opened(*options.named)
    facts = contents.facts(loaded)
    if options.json:
        terminal.say([structured.dumps({"manifest": facts, "parts": contents.parts(loaded)})])
        return 0
    terminal.say(text.of_facts(facts))
    terminal.say(text.of_parts(contents.parts(loaded)))
    return 0


def _verify(options: argparse.Namespace) -> int:
    chosen = [target for name in options.named for target in targets.checkpoints(name)]
    runs = {posixpath.dirname(target.directory.url) for target in chosen}
    read = []
    for verdict in checking.verdicts(chosen):
        read.append(verdict)
        if not options.json:  # at once: a checkpoint may take minutes
            terminal.say([text.of_verdict(verdict, by_url=len(runs) > 1)])
    if options.json:
        terminal.say([structured.dumps({"checkpoints": read})])
    return checking.status(verdict.state for verdict in read)


def _prune(options: argparse.Namespace) -> int:
    storage, _ = targets.run_with_checkpoints(options.dir)
    best = (*options.keep_best, options.best_count or 1) if options.keep_best else None
    rules = Retention(keep_last=options.keep_last, keep_every=options.keep_every, keep_best=best)
    pruned = pruning.prune(storage, rules, dry_run=options.dry_run)
    terminal.say([structured.dumps(pruned)] if options.json else text.of_pruned(pruned))
    return 0


def _export(options: argparse.Namespace) -> int:
    weights = Weights(_opened(*options.named))
    exported = exporting.export(weights, options.file, options.max_shard_size)
    terminal.say([structured.dumps(exported) if options.json else text.of_exported(exported)])
    return 0


def _diff(options: argparse.Namespace) -> int:
    first, second = (_opened(name) for name in options.named)
    compared = comparison.compare(first, second)
    terminal.say([structured.dumps(compared)] if options.json else text.of_comparison(compared))
    return 1 if compared.differences else 0


def _plot(options: argparse.Namespace) -> int:
    _, epochs = targets.run_with_checkpoints(options.dir)
    curve = series.series(CheckpointDirectory(options.dir), epochs, options.metric)
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


def _opened(name: Name) -> LoadedCheckpoint:
    """Return the checkpoint that a name stands for; errors as for `targets.checkpoint`."""
    return targets.checkpoint(name).open()
