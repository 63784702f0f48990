"""The kinds of words that several commands take, and how each kind is understood.

Imports nothing that imports torch, as `parser` does not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from ray_imuckpt import units
from ray_imuckpt.cli import completion, naming

if TYPE_CHECKING:  # it has no public name, and takes no brackets when it runs
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001
else:
    Commands = argparse._SubParsersAction  # noqa: SLF001


def of_run(commands: Commands, name: str, text: str) -> argparse.ArgumentParser:
    """Add a command that takes a run directory."""
    command = commands.add_parser(name, help=text, description=text)
    text = "the run directory, which holds the checkpoints: a path or an fsspec URL"
    completed(command.add_argument("dir", help=text), completion.directories)
    return command


def of_checkpoints(
    commands: Commands, name: str, text: str, more: str = ""
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
    completed(words, completion.checkpoints)
    add_best(command, "what `best` is measured by")
    return command


def add_best(command: argparse.ArgumentParser, text: str) -> None:
    """Add what says which checkpoint is the best."""
    completed(command.add_argument("--metric", help=text), completion.metrics)
    command.add_argument("--mode", choices=("min", "max"), help="whether less or more is better")


def completed(action: argparse.Action, by: Callable[..., list[str]]) -> None:
    """Let argcomplete ask a function for what may come next."""
    action.completer = by  # type: ignore[attr-defined] # its own way to be told


def add_json(command: argparse.ArgumentParser) -> None:
    """Add the option that every command has."""
    command.add_argument("--json", action="store_true", help="print JSON, for programs")


def several(word: str) -> str:
    """Return a list such as ``loss,accuracy`` as it is; see `logs.chosen`."""
    if not word.replace(",", "").strip():
        raise argparse.ArgumentTypeError(f"{word!r} has no name in it")
    return word


def depth(word: str) -> int:
    """Return a number that is 0 or more."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is no depth: 0 or more is wanted")
    return int(word)


def positive(word: str) -> int:
    """Return a number that is 1 or more; argparse shows the error's text."""
    try:
        number = int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is no integer") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} keeps nothing; use 1 or more, or leave it out")
    return number


def age(text: str) -> float:
    """Return the seconds of an age such as ``30min``, ``12h`` or ``2d``."""
    try:
        return units.parsed_age(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def size(text: str) -> int:
    """Return the bytes of a size such as ``5GB`` or ``500MB``."""
    try:
        return units.parsed(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
