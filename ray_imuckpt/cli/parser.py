"""The words on the command line: which commands there are, and what each one takes.

Imports nothing that imports torch: ``--help`` and a wrong word are answered at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ray_imuckpt import units
from ray_imuckpt._version import __version__
from ray_imuckpt.cli import naming

_ENDING = """\
RUN is a path or an fsspec URL of a run
directory, "." where it is left out.
CHECKPOINT is an epoch, last, best,
min:METRIC, max:METRIC, checkpoint=EPOCH.
A checkpoint's own path or URL stands for
both.

exit status:
  0    all is well
  1    damage or a difference was found
  2    it could not be done
  141  the reader of the output left

"imuckpt COMMAND --help" says what a
command takes.
"""
_Commands = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public name for it


class _Parser(argparse.ArgumentParser):
    """A parser that takes a command's words and its options in any order.

    ``export RUN --max-shard-size 5GB 12 FILE``: argparse alone would take ``RUN`` for all words.
    """

    _inside = False  # argparse's own method for it comes back to `parse_known_args`

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Implement `argparse.ArgumentParser.parse_known_args`."""
        if self._inside or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what the words say.

    ``command`` is the name of one of the commands. Of those that take checkpoints, ``named`` says
    which, as a list of `naming.Name`.

    Args:
        arguments: The words behind ``imuckpt``; ``None`` for those of this process.

    Raises:
        SystemExit: With status 2 for words that are no command, with 0 for ``--help``.
        ValueError: They contradict each other, or lack something.
    """
    options = _parser().parse_args(arguments)
    if options.command == "prune":
        _check_rules(options)
    if "words" in options:
        options.named = _named(options)
    return options


def _named(options: argparse.Namespace) -> list[naming.Name]:
    if (options.metric is None) is not (options.mode is None):
        raise ValueError("--metric and --mode go together: --metric loss --mode min.")
    best = None if options.metric is None else naming.Rule(options.metric, options.mode)
    if options.command == "diff":
        return [*naming.two(options.words, best)]
    if options.command == "verify":
        return naming.names(options.words, best)
    return [naming.one(options.words, best)]


def _check_rules(options: argparse.Namespace) -> None:
    if options.keep_last is options.keep_every is options.keep_best is None:
        raise ValueError("prune needs a rule: --keep-last, --keep-every or --keep-best.")
    if options.best_count is not None and not options.keep_best:
        raise ValueError("--best-count goes with --keep-best.")
    if options.keep_best and options.keep_best[1] not in ("min", "max"):
        raise ValueError(
            f"--keep-best {' '.join(options.keep_best)}: the second word is min or max."
        )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="imuckpt",
        description="Look at checkpoints.",
        epilog=_ENDING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ray_imuckpt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_looking(commands)
    _add_changing(commands)
    _add_comparing(commands)
    return parser


def _add_looking(commands: _Commands[_Parser]) -> None:
    ls = _of_run(commands, "ls", "List the checkpoints, with those of abandoned branches marked.")
    _add_json(ls)
    show = _of_checkpoints(commands, "show", "Show what a checkpoint holds; default: the last one.")
    _add_json(show)
    verify = _of_checkpoints(
        commands, "verify", "Read every byte and check it; default: of all checkpoints.", "…"
    )
    _add_json(verify)


def _add_changing(commands: _Commands[_Parser]) -> None:
    prune = _of_run(commands, "prune", "Delete the checkpoints that no rule keeps.")
    prune.add_argument("--keep-last", type=_positive, metavar="N", help="the last N")
    prune.add_argument("--keep-every", type=_positive, metavar="N", help="each multiple of N")
    prune.add_argument(
        "--keep-best",
        nargs=2,
        metavar=("METRIC", "min|max"),
        help="the best by that metric",
    )
    prune.add_argument(
        "--best-count", type=_positive, metavar="N", help="how many of the best; default: 1"
    )
    prune.add_argument("--dry-run", action="store_true", help="only tell")
    _add_json(prune)
    export = _of_checkpoints(
        commands, "export", "Write a model's weights into plain safetensors files.", " FILE"
    )
    export.add_argument("file", metavar="FILE", help="must not exist: model.safetensors")
    export.add_argument(
        "--max-shard-size",
        type=_size,
        metavar="SIZE",
        help="where there is more, write several files and model.safetensors.index.json: 5GB",
    )
    _add_json(export)


def _add_comparing(commands: _Commands[_Parser]) -> None:
    diff = _of_checkpoints(
        commands,
        "diff",
        "Compare two checkpoints, of one run or of two: tensors of the model, metrics, versions.",
        " [RUN] CHECKPOINT",
    )
    _add_json(diff)
    plot = _of_run(commands, "plot", "Draw a metric over the epochs, as text.")
    plot.add_argument("metric")
    _add_json(plot)


def _of_run(commands: _Commands[_Parser], name: str, text: str) -> _Parser:
    """Add a command that takes a run directory."""
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument(
        "dir", help="the run directory, which holds the checkpoints: a path or an fsspec URL"
    )
    return command


def _of_checkpoints(commands: _Commands[_Parser], name: str, text: str, more: str = "") -> _Parser:
    """Add a command that takes checkpoints; `more` is what its usage says behind the first."""
    command = commands.add_parser(
        name,
        help=text,
        description=text,
        usage=f"imuckpt {name} [RUN] [CHECKPOINT]{more} [option ...]",
    )
    command.add_argument(
        "words",
        nargs="*",
        metavar="CHECKPOINT",
        help="its path or URL; or that of its run, which is '.' where it is left out, and "
        f"{naming.WAYS}",
    )
    command.add_argument("--metric", help="what `best` is measured by")
    command.add_argument("--mode", choices=("min", "max"), help="whether less or more is better")
    return command


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON, for programs")


def _positive(word: str) -> int:
    """Return a number that is 1 or more; argparse shows the error's text."""
    try:
        number = int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is no integer") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} keeps nothing; use 1 or more, or leave it out")
    return number


def _size(text: str) -> int:
    """Return the bytes of a size such as ``5GB`` or ``500MB``."""
    try:
        return units.parsed(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
