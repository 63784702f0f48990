"""The names of checkpoints, as words on the command line say them. Touches nothing.

A directory, of a run or of one checkpoint, is a path or a URL. The words behind it choose
checkpoints of that run: an epoch, ``last``, ``best``, ``min:METRIC``, ``max:METRIC``, or a
directory in it (``checkpoint=40``, Ray Tune's ``checkpoint_000003``). Where no directory comes
first it is the working directory. One that is itself called ``40`` is ``./40``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ray_imuckpt.repository import paths

WAYS = "an epoch, last, best, min:METRIC, max:METRIC or checkpoint=EPOCH"

NAME, BEST, AGE = "name", "best", "age"  # the orders of runs

_LAST = "last"
_BEST = "best"
_EPOCH = re.compile(r"-?[0-9]+", re.ASCII)
_BEST_BY = re.compile(r"(min|max):(?!//)(.*)", re.DOTALL)
_OF_TUNE = re.compile(r"checkpoint_[0-9]+", re.ASCII)


class Rule(NamedTuple):
    """The rule by which a checkpoint is the best: a metric, and ``min`` or ``max``."""

    metric: str
    mode: str


@dataclass(frozen=True)
class Choice:
    """One checkpoint of a run: the last one, where no field says another.

    Attributes:
        epoch: Its epoch.
        best: The rule by which it is the best.
        child: The name of the directory in the run directory that holds it, or points to it.
    """

    epoch: int | None = None
    best: Rule | None = None
    child: str | None = None


class Name(NamedTuple):
    """One thing that is named.

    Attributes:
        directory: A path or a URL.
        choice: A checkpoint of the run there; ``None``: the directory itself.
    """

    directory: str
    choice: Choice | None = None


def names(words: Sequence[str], best: Rule | None = None) -> list[Name]:
    """Return what words name, in their order; of a run of which some are chosen, only these.

    Args:
        words: Directories, and behind each what is chosen of it.
        best: What ``best`` stands for.

    Raises:
        ValueError: ``best`` stands for nothing, or is not there though it stands for something;
            or a word is no name.
    """
    if best is not None and _BEST not in words:
        raise ValueError("--metric and --mode say which checkpoint is `best`: name that one.")
    named: list[Name] = []
    directory = "."
    for word in words:
        choice = _choice(word, best)
        if choice is None or (choice.child is not None and not named):
            directory = word
            named.append(Name(directory))
            continue
        if named[-1:] == [Name(directory)] and not is_checkpoint(directory):
            named.pop()
        named.append(Name(run_of(directory), choice))
    return named or [Name(directory)]


def one(words: Sequence[str], best: Rule | None = None) -> Name:
    """Return the one checkpoint that words name; errors as for `names`, and where it is not one."""
    return _counted(words, best, 1)[0]


def two(words: Sequence[str], best: Rule | None = None) -> tuple[Name, Name]:
    """Return the two checkpoints that words name; errors as for `one`."""
    first, second = _counted(words, best, 2)
    return first, second


def is_checkpoint(directory: str) -> bool:
    """Return whether a directory is by its name that of a checkpoint, or points to one."""
    last = posixpath.basename(directory.rstrip("/"))
    return paths.parse_checkpoint_name(last) is not None or _OF_TUNE.fullmatch(last) is not None


def run_of(directory: str) -> str:
    """Return the run directory that a directory is, or that holds it."""
    if not is_checkpoint(directory):
        return directory
    head, slash, _ = directory.rstrip("/").rpartition("/")
    return head or slash or "."


def _counted(words: Sequence[str], best: Rule | None, count: int) -> list[Name]:
    named = names(words, best)
    if len(named) != count:
        wanted = "one checkpoint is" if count == 1 else f"{count} checkpoints are"
        raise ValueError(
            f"{wanted} wanted, and {' '.join(words) or '.'} names {len(named)}. A checkpoint is "
            f"named by its own path or URL; or behind that of its run by {WAYS}."
        )
    return named


def _choice(word: str, best: Rule | None) -> Choice | None:
    """Return what a word chooses of a run, ``None`` if it is a directory."""
    if word == _LAST:
        return Choice()
    if _EPOCH.fullmatch(word):
        if word.startswith("-"):
            raise ValueError(f"{word} is no epoch: these are 0 or more.")
        return Choice(epoch=int(word))
    if word == _BEST:
        if best is None:
            raise ValueError(
                "The best by which metric? Give --metric METRIC --mode min or max; or write "
                "min:METRIC or max:METRIC in place of `best`."
            )
        return Choice(best=best)
    if found := _BEST_BY.fullmatch(word):
        if not found[2]:
            raise ValueError(f"{word} names no metric: write {word}loss, for example.")
        return Choice(best=Rule(found[2], found[1]))
    return Choice(child=word) if "/" not in word and is_checkpoint(word) else None
