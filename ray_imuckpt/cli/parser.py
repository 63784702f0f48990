"""The words on the command line: which commands there are, and what each one takes.

Imports nothing that imports torch: ``--help`` and a wrong word are answered at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ray_imuckpt._version import __version__
from ray_imuckpt.cli import completion, naming, words
from ray_imuckpt.cli.words import Commands

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
  130  it was interrupted
  141  the reader of the output left

"imuckpt COMMAND --help" says what a
command takes.
"""


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
    if options.command == "ls" and options.sort == naming.BEST and options.best is None:
        raise ValueError("--sort best needs --metric and --mode: --metric loss --mode min.")
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
    _add_importing(commands)
    _add_comparing(commands)
    text = 'Print a script for completion in a shell: eval "$(imuckpt completion bash)".'
    shell = commands.add_parser("completion", help=text, description=text)
    shell.add_argument("shell", choices=completion.SHELLS, help="the shell that is to run it")
    return made


def _add_looking(commands: Commands) -> None:
    text = "List the checkpoints of a run; or the runs, trials of Ray Tune too, below a directory."
    ls = commands.add_parser("ls", help=text, description=text)
    words.completed(
        ls.add_argument(
            "dir",
            nargs="?",
            default=".",
            help="a run directory, or one above: a path or an fsspec URL; default: '.'",
        ),
        completion.directories,
    )
    ls.add_argument("--runs", action="store_true", help="list runs, also where this is one itself")
    words.add_best(ls, "tell the best checkpoint by this metric; of each run")
    ls.add_argument(
        "--sort",
        choices=(naming.NAME, naming.BEST, naming.AGE),
        help="the order of runs: by name, or the best or the youngest first; default: name",
    )
    words.add_json(ls)
    show = words.of_checkpoints(
        commands, "show", "Show what a checkpoint holds; default: the last one."
    )
    show.add_argument(
        "--depth", type=words.depth, default=1, metavar="N", help="tell modules so deep; default: 1"
    )
    show.add_argument("--tensors", action="store_true", help="list each tensor of the model, too")
    words.add_json(show)
    verify = words.of_checkpoints(
        commands, "verify", "Read every byte and check it; default: of all checkpoints.", "..."
    )
    words.add_json(verify)


def _add_changing(commands: Commands) -> None:
    prune = words.of_run(commands, "prune", "Delete the checkpoints that no rule keeps.")
    prune.add_argument("--keep-last", type=words.positive, metavar="N", help="the last N")
    prune.add_argument("--keep-every", type=words.positive, metavar="N", help="each multiple of N")
    prune.add_argument(
        "--keep-best",
        nargs=2,
        metavar=("METRIC", "min|max"),
        help="the best by that metric",
    )
    prune.add_argument(
        "--best-count", type=words.positive, metavar="N", help="how many of the best; default: 1"
    )
    prune.add_argument(
        "--dry-run", action="store_true", help="only tell what would go, and why the others stay"
    )
    words.add_json(prune)
    clean = words.of_run(commands, "clean", "Remove what saves that did not end have left.")
    clean.add_argument(
        "--older-than",
        type=words.age,
        default="1d",
        metavar="AGE",
        help="what is younger stays, since a save in flight looks just so: 12h; default: 1d",
    )
    clean.add_argument("--dry-run", action="store_true", help="only tell")
    words.add_json(clean)
    export = words.of_checkpoints(
        commands, "export", "Write a model's weights into plain safetensors files.", " FILE"
    )
    export.add_argument("file", metavar="FILE", help="must not exist: model.safetensors")
    export.add_argument(
        "--max-shard-size",
        type=words.size,
        metavar="SIZE",
        help="where there is more, write several files and model.safetensors.index.json: 5GB",
    )
    words.add_json(export)


def _add_importing(commands: Commands) -> None:
    text = "Bring a checkpoint of torch.save, Lightning, DCP or safetensors into a run directory."
    command = commands.add_parser("import", help=text, description=text)
    command.add_argument("source", help="a local file, or the directory of DCP's or of Ray's")
    command.add_argument("dir", help="the run directory: a path or an fsspec URL")
    command.add_argument("--epoch", type=int, metavar="N", help="default: the one it says")
    command.add_argument(
        "--model-key", metavar="KEY", help="where the model's state is in it: app.model"
    )
    command.add_argument("--optimizer-key", metavar="KEY", help="where the optimizer's state is")
    command.add_argument(
        "--parameters",
        metavar="FILE",
        help="the names of the optimizer's parameters in its order, one a line",
    )
    command.add_argument(
        "--strip",
        default="",
        metavar="PREFIX",
        help="bring only tensors whose names begin so, without it: model.",
    )
    words.add_json(command)


def _add_comparing(commands: Commands) -> None:
    diff = words.of_checkpoints(
        commands,
        "diff",
        "Compare two checkpoints, of one run or of two: tensors of the model, metrics, versions.",
        " [RUN] CHECKPOINT",
    )
    words.add_json(diff)
    log = words.of_checkpoints(
        commands, "log", "Show the training log in a checkpoint; default: in the last one."
    )
    log.add_argument("--tail", type=words.positive, metavar="N", help="the last N entries alone")
    log.add_argument(
        "--columns", type=words.several, metavar="A,B", help="these columns; default: all"
    )
    log.add_argument("--csv", action="store_true", help="print CSV, with numbers in full")
    words.add_json(log)
    _add_plot(commands)


def _add_plot(commands: Commands) -> None:
    text = "Draw curves of runs: of the logs in their last checkpoints, and of all metrics."
    plot = commands.add_parser("plot", help=text, description=text)
    runs = plot.add_argument("runs", nargs="+", metavar="RUN", help="a path or an fsspec URL")
    words.completed(runs, completion.directories)
    metrics = plot.add_argument(
        "-m",
        "--metric",
        dest="metrics",
        type=words.several,
        action="append",
        metavar="A,B",
        help="names of columns or metrics; may be given again; default: all",
    )
    words.completed(metrics, completion.metrics_of_runs)
    plot.add_argument(
        "-o", "--output", metavar="FILE", help="a picture, which must not exist: curves.png"
    )
    words.add_json(plot)
