"""The commands that read checkpoints: each computes values, prints them, and returns the status."""

from __future__ import annotations

import argparse
import posixpath
from collections.abc import Callable

from ray_imuckpt.cli import (
    charts,
    checking,
    comparison,
    contents,
    curves,
    exporting,
    logs,
    pictures,
    structured,
    targets,
    terminal,
    text,
    text_log,
)
from ray_imuckpt.cli.naming import Name
from ray_imuckpt.cli.weights import Weights
from ray_imuckpt.loading.stored import LoadedCheckpoint
from ray_imuckpt.migration import import_checkpoint
from ray_imuckpt.units import listed

Command = Callable[[argparse.Namespace], int]
"""Takes the options that `ray_imuckpt.cli.parser` understood, and returns the exit status."""


def _show(options: argparse.Namespace) -> int:
    loaded = _opened(*options.named)
    facts = contents.facts(loaded)
    if not options.json:
        terminal.say(text.of_facts(facts))  # at once: the headers may be far away
    parts = contents.parts(loaded, options.depth)
    if options.json:
        terminal.say([structured.dumps({"manifest": facts, "parts": parts})])
    else:
        terminal.say(text.of_parts(parts, tensors=options.tensors, width=terminal.width()))
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


def _export(options: argparse.Namespace) -> int:
    weights = Weights(_opened(*options.named))
    exported = exporting.export(weights, options.file, options.max_shard_size)
    terminal.say([structured.dumps(exported) if options.json else text.of_exported(exported)])
    return 0


def _import(options: argparse.Namespace) -> int:
    parameters = None
    if options.parameters is not None:
        with open(options.parameters, encoding="utf-8") as file:
            parameters = [line.strip() for line in file if line.strip()]
    imported = import_checkpoint(
        options.source,
        options.dir,
        epoch=options.epoch,
        model_key=options.model_key,
        optimizer_key=options.optimizer_key,
        parameters=parameters,
        strip=options.strip,
    )
    terminal.say([structured.dumps(imported)] if options.json else text.of_imported(imported))
    return 0


def _diff(options: argparse.Namespace) -> int:
    first, second = (_opened(name) for name in options.named)
    compared = comparison.compare(first, second)
    if options.json:
        terminal.say([structured.dumps(compared)])
    else:
        terminal.say(text.of_comparison(compared, terminal.width()))
    return 1 if compared.differences else 0


def _log(options: argparse.Namespace) -> int:
    table = logs.rows(_opened(*options.named).log)
    columns = logs.columns(table)
    chosen = logs.chosen([options.columns], columns) if options.columns else columns
    lacking = [name for name in chosen if name not in columns]
    if lacking and table:
        raise ValueError(f"the log has no column {listed(lacking)}; it has: {listed(columns)}.")
    if not table:
        raise ValueError("the log of this checkpoint is empty.")
    table = table[-options.tail :] if options.tail else table
    if options.json:
        cut = [{name: row[name] for name in chosen if name in row} for row in table]
        terminal.say([structured.dumps({"columns": chosen, "rows": cut})])
    elif options.csv:
        terminal.write(text_log.csv_of(table, chosen))
    else:
        terminal.say([text_log.of_log(table, chosen)])
    return 0


def _plot(options: argparse.Namespace) -> int:
    if options.output:
        pictures.check(options.output)  # before runs are read, which may be far away
    drawn = curves.curves(options.runs, options.metrics)
    for verdict in drawn.unread:
        terminal.complain(verdict.problem)
    for run, metric, others in drawn.without:
        there = f"; it has some for: {listed([*others])}" if others else ", nor for anything else"
        terminal.complain(f"{run} has no finite numbers for {metric}{there}.")
    if options.output:
        pictures.draw(drawn, options.output)
    if options.json:
        terminal.say([structured.dumps(drawn)])
    elif options.output:
        terminal.say([f"{listed(drawn.metrics)}: {options.output}"])
    else:
        terminal.say(charts.of_curves(drawn, terminal.width()))
    return checking.status(verdict.state for verdict in drawn.unread)


COMMANDS: dict[str, Command] = {
    "show": _show,
    "verify": _verify,
    "export": _export,
    "import": _import,
    "diff": _diff,
    "log": _log,
    "plot": _plot,
}


def _opened(name: Name) -> LoadedCheckpoint:
    """Return the checkpoint that a name stands for; errors as for `targets.checkpoint`."""
    return targets.checkpoint(name).open()
