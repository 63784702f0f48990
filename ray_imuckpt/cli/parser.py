"""The words on the command line: which commands there are, and what each one takes.

Imports nothing that imports torch: ``--help`` and a wrong word are answered at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ray_imuckpt import units
from ray_imuckpt._version import __version__

_EXIT_STATUS = """\
exit status:
  0    all is well
  1    damage or a difference was found
  2    it could not be done
  141  the reader of the output left

"imuckpt COMMAND --help" says what a
command takes.
"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what the words say; ``command`` is the name of one of the commands.

    Args:
        arguments: The words behind ``imuckpt``; ``None`` for those of this process.

    Raises:
        SystemExit: With status 2 for words that are no command, with 0 for ``--help``.
        ValueError: They contradict each other, or lack something.
    """
    options = _parser().parse_args(arguments)
    if options.command == "prune":
        _check_rules(options)
    return options


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
    parser = argparse.ArgumentParser(
        prog="imuckpt",
        description="Look at checkpoints.",
        epilog=_EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ray_imuckpt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_looking(commands)
    _add_changing(commands)
    _add_comparing(commands)
    return parser


def _add_looking(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ls = _command(commands, "ls", "List the checkpoints, with those of abandoned branches marked.")
    _add_json(ls)
    show = _command(commands, "show", "Show what a checkpoint holds.")
    show.add_argument("epoch", type=int, nargs="?", help="default: the last one")
    _add_json(show)
    verify = _command(commands, "verify", "Read every byte and check it.")
    verify.add_argument("epoch", type=int, nargs="*", help="default: all")
    _add_json(verify)


def _add_changing(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    prune = _command(commands, "prune", "Delete the checkpoints that no rule keeps.")
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
    export = _command(commands, "export", "Write a model's weights into plain safetensors files.")
    export.add_argument("epoch", type=int)
    export.add_argument("file", help="must not exist: model.safetensors")
    export.add_argument(
        "--max-shard-size",
        type=_size,
        metavar="SIZE",
        help="where there is more, write several files and model.safetensors.index.json: 5GB",
    )


def _add_comparing(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    diff = _command(
        commands, "diff", "Compare two epochs: tensors of the model, metrics, versions."
    )
    diff.add_argument("first", type=int)
    diff.add_argument("second", type=int)
    _add_json(diff)
    plot = _command(commands, "plot", "Draw a metric over the epochs, as text.")
    plot.add_argument("metric")
    _add_json(plot)


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument(
        "dir", help="the run directory, which holds the checkpoints: a path or an fsspec URL"
    )
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
