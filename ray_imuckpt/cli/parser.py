"""The words on the command line: which commands there are, and what each one takes.

Imports nothing that imports torch: ``--help`` and a wrong word are answered at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ray_imuckpt import units
from ray_imuckpt._version import __version__
from ray_imuckpt.cli import completion, naming

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

if TYPE_CHECKING:  # it has no public name, and takes no brackets when it runs
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001


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
    options = parser().parse_args(arguments)
    if options.command == "prune":
        _check_rules(options)
    if "metric" in options and "mode" in options:
        options.best = _best(options)
    if "words" in options:
        options.named = _named(options, options.best)
    return options


def _best(options: argparse.Namespace) -> naming.Rule | None:
    if (options.metric is None) is not (options.mode is None):
        raise ValueError("--metric and --mode go together: --metric loss --mode min.")
    return None if options.metric is None else naming.Rule(options.metric, options.mode)


def _named(options: argparse.Namespace, best: naming.Rule | None) -> list[naming.Name]:
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


def parser(*, plain: bool = False) -> argparse.ArgumentParser:
    """Return the parser of the command line.

    Args:
        plain: Whether it is one of argparse's own, as argcomplete expects it.
    """
    made = (argparse.ArgumentParser if plain else _Parser)(
        prog="imuckpt",
        description="Look at checkpoints.",
        epilog=_ENDING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"ray_imuckpt {__version__}")
    commands = made.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_looking(commands)
    _add_changing(commands)
    _add_comparing(commands)
    text = 'Print a script for completion in a shell: eval "$(imuckpt completion bash)".'
    shell = commands.add_parser("completion", help=text, description=text)
    shell.add_argument("shell", choices=completion.SHELLS, help="the shell that is to run it")
    return made


def _add_looking(commands: _Commands) -> None:
    text = "List the checkpoints of a run; or the runs, trials of Ray Tune too, below a directory."
    ls = commands.add_parser("ls", help=text, description=text)
    _completed(
        ls.add_argument(
            "dir",
            nargs="?",
            default=".",
            help="a run directory, or one above: a path or an fsspec URL; default: '.'",
        ),
        completion.directories,
    )
    ls.add_argument("--runs", action="store_true", help="list runs, also where this is one itself")
    _add_best(ls, "tell the best checkpoint by this metric; of each run")
    _add_json(ls)
    show = _of_checkpoints(commands, "show", "Show what a checkpoint holds; default: the last one.")
    show.add_argument(
        "--depth", type=_depth, default=1, metavar="N", help="tell modules so deep; default: 1"
    )
    show.add_argument("--tensors", action="store_true", help="list each tensor of the model, too")
    _add_json(show)
    verify = _of_checkpoints(
        commands, "verify", "Read every byte and check it; default: of all checkpoints.", "…"
    )
    _add_json(verify)


def _add_changing(commands: _Commands) -> None:
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
    prune.add_argument(
        "--dry-run", action="store_true", help="only tell what would go, and why the others stay"
    )
    _add_json(prune)
    clean = _of_run(commands, "clean", "Remove what saves that did not end have left.")
    clean.add_argument(
        "--older-than",
        type=_age,
        default="1d",
        metavar="AGE",
        help="what is younger stays, since a save in flight looks just so: 12h; default: 1d",
    )
    clean.add_argument("--dry-run", action="store_true", help="only tell")
    _add_json(clean)
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


def _add_comparing(commands: _Commands) -> None:
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


def _of_run(commands: _Commands, name: str, text: str) -> argparse.ArgumentParser:
    """Add a command that takes a run directory."""
    command = commands.add_parser(name, help=text, description=text)
    text = "the run directory, which holds the checkpoints: a path or an fsspec URL"
    _completed(command.add_argument("dir", help=text), completion.directories)
    return command


def _of_checkpoints(
    commands: _Commands, name: str, text: str, more: str = ""
) -> argparse.ArgumentParser:
    """Add a command that takes checkpoints; `more` is what its usage says behind the first."""
    command = commands.add_parser(
        name,
        help=text,
        description=text,
        usage=f"imuckpt {name} [RUN] [CHECKPOINT]{more} [option ...]",
    )
    words = command.add_argument(
        "words",
        nargs="*",
        metavar="CHECKPOINT",
        help="its path or URL; or that of its run, which is '.' where it is left out, and "
        f"{naming.WAYS}",
    )
    _completed(words, completion.checkpoints)
    _add_best(command, "what `best` is measured by")
    return command


def _add_best(command: argparse.ArgumentParser, text: str) -> None:
    _completed(command.add_argument("--metric", help=text), completion.metrics)
    command.add_argument("--mode", choices=("min", "max"), help="whether less or more is better")


def _completed(action: argparse.Action, by: Callable[..., list[str]]) -> None:
    """Let argcomplete ask a function for what may come next."""
    action.completer = by  # type: ignore[attr-defined] # its own way to be told


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON, for programs")


def _depth(word: str) -> int:
    """Return a number that is 0 or more."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is no depth: 0 or more is wanted")
    return int(word)


def _positive(word: str) -> int:
    """Return a number that is 1 or more; argparse shows the error's text."""
    try:
        number = int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is no integer") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} keeps nothing; use 1 or more, or leave it out")
    return number


def _age(text: str) -> float:
    """Return the seconds of an age such as ``30min``, ``12h`` or ``2d``."""
    try:
        return units.parsed_age(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _size(text: str) -> int:
    """Return the bytes of a size such as ``5GB`` or ``500MB``."""
    try:
        return units.parsed(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
