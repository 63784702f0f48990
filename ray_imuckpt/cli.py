"""The command ``imuckpt``: a directory of checkpoints, looked at from a terminal.

Every command takes the directory as a path or any URL that fsspec knows. The exit status is 0 when
all is well, 1 when something was found (damage, a difference), 2 when it could not be done, for
want of checkpoints too. Who reads the output may stop reading (``| head``): then it is 141, as of
any program that a closed pipe ends.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import torch

from ray_imuckpt.checkpointer import Checkpointer
from ray_imuckpt.encoding import tensors
from ray_imuckpt.errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    ImuckptError,
    UnsupportedFormatError,
)
from ray_imuckpt.repository import leftovers, paths
from ray_imuckpt.repository.catalog import Catalog
from ray_imuckpt.storage import absolute, open_storage
from ray_imuckpt.units import size

_PLOT_WIDTH = 60
_CLOSED_PIPE = 141  # what a shell says of a program that SIGPIPE ended: 128 + 13


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; see the module's text for the status it returns."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(Checkpointer(options.dir), options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at exit: that must not meet the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _CLOSED_PIPE
    except (ImuckptError, ValueError, OSError) as error:
        _say(f"imuckpt: {error}", file=sys.stderr)
        return 2
    return status


def _say(text: str, file: TextIO | None = None) -> None:
    """Print a text; what a checkpoint holds may not steer the terminal that shows it."""
    plain = (c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    print("".join(plain), file=file)


def _epochs(checkpointer: Checkpointer) -> list[int]:
    """Return the epochs of all checkpoints.

    Raises:
        CheckpointNotFoundError: There are none.
    """
    epochs = checkpointer.list_existing_checkpoint_indices()
    if not epochs:
        raise CheckpointNotFoundError(
            "There are no checkpoints.", url=checkpointer.dir, hint="Look at the directory's name."
        )
    return epochs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="imuckpt", description="Look at checkpoints.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("dir", help="the directory of the checkpoints: a path or an fsspec URL")
        sub.set_defaults(run=run)
        return sub

    command("ls", _ls, "List the checkpoints, with those of abandoned branches marked.")
    show = command("show", _show, "Show what a checkpoint holds.")
    show.add_argument("epoch", type=int, nargs="?", help="default: the last one")
    verify = command("verify", _verify, "Read every byte and check it.")
    verify.add_argument("epoch", type=int, nargs="*", help="default: all")
    prune = command("prune", _prune, "Delete the checkpoints that no rule keeps.")
    prune.add_argument("--keep-last", type=int)
    prune.add_argument("--keep-every", type=int)
    prune.add_argument("--keep-best", nargs=2, metavar=("METRIC", "min|max"))
    prune.add_argument("--dry-run", action="store_true", help="only tell")
    export = command("export", _export, "Write a model's weights into one plain safetensors file.")
    export.add_argument("epoch", type=int)
    export.add_argument("file", help="must not exist")
    diff = command("diff", _diff, "Compare the models of two epochs.")
    diff.add_argument("first", type=int)
    diff.add_argument("second", type=int)
    plot = command("plot", _plot, "Draw a metric over the epochs, as text.")
    plot.add_argument("metric")
    return parser


def _ls(checkpointer: Checkpointer, options: argparse.Namespace) -> int:
    storage = open_storage(absolute(options.dir))
    try:
        storage.holding(paths.MANIFEST)
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(
            "There is no such directory.", url=storage.url, hint="Look at its name."
        ) from error
    catalog = Catalog(storage)
    live = set(catalog.live())
    epochs = catalog.committed()
    _say(f"{'epoch':>7}  {'made (UTC)':<19}  {'size':>9}  {'run':<8}  metrics")
    for epoch in epochs:
        try:
            loaded = checkpointer.read(epoch)
            numbers = loaded.metrics
        except ImuckptError as error:
            _say(f"{epoch:>7}  {error.message}")
            continue
        manifest = loaded.manifest
        total = size(sum(entry.size for entry in manifest.files))
        made = manifest.created[:19].replace("T", " ")
        metrics = ", ".join(f"{name}={_short(value)}" for name, value in numbers.items())
        mark = "" if epoch in live else "  (abandoned branch)"
        _say(f"{epoch:>7}  {made}  {total:>9}  {manifest.run_id[-8:]:<8}  {metrics}{mark}")
    _say(f"{len(epochs)} checkpoint(s), {len(epochs) - len(live)} of abandoned branches")
    return 0


def _show(checkpointer: Checkpointer, options: argparse.Namespace) -> int:
    loaded = checkpointer.read(options.epoch)
    manifest = loaded.manifest
    parent = manifest.parent
    _say(f"epoch {loaded.epoch} at {loaded.url}")
    _say(f"made {manifest.created} by run {manifest.run_id} with {manifest.world_size} rank(s)")
    _say(f"continued from {'scratch' if parent is None else f'epoch {parent.epoch}'}")
    _say("written with " + ", ".join(f"{k} {v}" for k, v in manifest.versions.items()))
    for entry in manifest.files:
        _say(f"  {size(entry.size):>9}  {entry.name}")
    _say(f"metrics: {_short(loaded.metrics)}")
    model, _ = loaded.model_places  # the headers alone are read
    _say(f"model: {len(model)} tensors")
    for name, tensor in model.items():
        _say(f"  {str(tensor.dtype).removeprefix('torch.'):<10} {tuple(tensor.shape)!s:<16} {name}")
    optimizer = loaded.optimizer_places
    _say(f"optimizer: {'none' if optimizer is None else optimizer['class']}")
    _say(f"other: {', '.join(loaded.other) or 'nothing'}")
    entries = len(loaded.log) if hasattr(loaded.log, "__len__") else 1
    _say(f"log: {entries} entries")
    return 0


def _verify(checkpointer: Checkpointer, options: argparse.Namespace) -> int:
    damaged = newer = 0
    for epoch in options.epoch or _epochs(checkpointer):
        try:
            checkpointer.verify(epoch)
        except CorruptCheckpointError as error:
            damaged += 1
            _say(f"{epoch:>7}  damaged: {error}")
        except UnsupportedFormatError as error:
            newer += 1
            _say(f"{epoch:>7}  of a newer format: {error}")
        else:
            _say(f"{epoch:>7}  sound")
    return 2 if newer else 1 if damaged else 0


def _prune(checkpointer: Checkpointer, options: argparse.Namespace) -> int:
    _epochs(checkpointer)
    best = tuple(options.keep_best) if options.keep_best else None
    left = leftovers.sweep(open_storage(absolute(options.dir)), dry_run=options.dry_run)
    gone = checkpointer.prune(
        keep_last=options.keep_last,
        keep_every=options.keep_every,
        keep_best=best,
        dry_run=options.dry_run,
    )
    deleted = "would delete" if options.dry_run else "deleted"
    _say(f"{deleted} {len(gone)}: {gone}")
    if left.files or left.uploads:
        _say(f"{deleted} {left}")
    return 0


def _export(checkpointer: Checkpointer, options: argparse.Namespace) -> int:
    model = checkpointer.read(options.epoch).model
    with open(options.file, "xb") as file:
        try:
            contiguous = {name: tensor.contiguous() for name, tensor in model.items()}
            file.writelines(view[:] for view in tensors.encode(contiguous))
        except BaseException:
            os.unlink(options.file)  # half a file would pass for a whole one
            raise
    _say(f"{len(model)} tensors, {size(os.path.getsize(options.file))}: {options.file}")
    return 0


def _diff(checkpointer: Checkpointer, options: argparse.Namespace) -> int:
    first, second = (checkpointer.read(epoch).model for epoch in (options.first, options.second))
    differing = 0
    for name in sorted(first.keys() | second.keys()):
        told = _difference(first.get(name), second.get(name))
        if told:
            differing += 1
            _say(f"  {name}: {told}")
    total = len(first.keys() | second.keys())
    _say(f"{differing} of {total} tensors differ between {options.first} and {options.second}")
    return 1 if differing else 0


def _difference(a: torch.Tensor | None, b: torch.Tensor | None) -> str:
    if a is None or b is None:
        return f"only in the {'second' if a is None else 'first'}"
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{a.dtype} {tuple(a.shape)} became {b.dtype} {tuple(b.shape)}"
    if bytes(tensors.byte_view(a)[:]) == bytes(tensors.byte_view(b)[:]):
        return ""
    wide = torch.complex128 if a.is_complex() else torch.float64
    return f"largest difference {(a.to(wide) - b.to(wide)).abs().max().item():.6g}"


def _plot(checkpointer: Checkpointer, options: argparse.Namespace) -> int:
    points: dict[int, float] = {}
    status = 0
    for epoch in _epochs(checkpointer):
        try:
            value = checkpointer.read(epoch).metrics.get(options.metric)
        except (CorruptCheckpointError, UnsupportedFormatError) as error:
            status = max(status, 2 if isinstance(error, UnsupportedFormatError) else 1)
            _say(f"imuckpt: {error}", file=sys.stderr)
            continue
        if isinstance(value, (int, float)) and abs(value) <= sys.float_info.max:
            points[epoch] = float(value)
    if not points:
        raise ValueError(f"no checkpoint has a finite number for the metric {options.metric!r}")
    low, high = min(points.values()), max(points.values())
    for epoch, value in points.items():
        share = (value - low) / (high - low) if high > low else 1.0
        _say(f"{epoch:>7}  {value:>12.6g}  {'#' * max(1, round(share * _PLOT_WIDTH))}")
    return status


def _short(value: Any) -> str:
    try:
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    except ValueError:  # an integer of more digits than Python shows
        return "(too long)"
