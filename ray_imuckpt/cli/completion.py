"""Completion in a shell, by argcomplete: of commands, options, directories, epochs and metrics.

Each press of the tabulator starts this program, so that nothing is imported that takes long, and no
directory is looked into that is not on this machine's disk.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Any

from ray_imuckpt.cli import naming
from ray_imuckpt.repository import paths
from ray_imuckpt.storage import Storage, absolute, open_storage
from ray_imuckpt.storage.names import is_path

SHELLS = ("bash", "zsh", "fish")

_VARIABLE = "_ARGCOMPLETE"  # argcomplete's script in the shell sets it


def is_asked() -> bool:
    """Return whether a shell asks for what may come next, and no command is to run."""
    return _VARIABLE in os.environ


def complete(parser: argparse.ArgumentParser) -> None:
    """Tell the shell what may come next, and end this process.

    Raises:
        SystemExit: Always; also where argcomplete is not installed.
    """
    try:
        import argcomplete
        from argcomplete.completers import FilesCompleter
    except ImportError:
        raise SystemExit(1) from None
    argcomplete.autocomplete(parser, default_completer=FilesCompleter())
    raise SystemExit(0)


def script(shell: str) -> str:
    """Return the script that a shell is to run for completion.

    Raises:
        ValueError: argcomplete is not installed.
    """
    try:
        from argcomplete.shell_integration import shellcode
    except ImportError:
        raise ValueError(
            "completion needs the package argcomplete: pip install 'ray-imuckpt[terminal]'."
        ) from None
    return shellcode(["imuckpt"], shell=shell)


def directories(prefix: str, **_: Any) -> list[str]:
    """Return the directories that begin so; argcomplete calls it."""
    head, slash, last = prefix.rpartition("/")
    shown = head + slash
    found: list[str] = []
    with contextlib.suppress(OSError), os.scandir(os.path.expanduser(shown) or ".") as entries:
        found = [f"{shown}{e.name}/" for e in entries if e.name.startswith(last) and e.is_dir()]
    return sorted(found)


def checkpoints(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Return the names of checkpoints, and the directories, that begin so; argcomplete calls it."""
    words: list[str] = parsed_args.words or []
    run = _run_of(words)
    epochs: Iterable[int | None] = ()
    if run is not None:
        epochs = map(paths.parse_checkpoint_name, _quiet(lambda: run.holding(paths.MANIFEST), []))
    names = [str(epoch) for epoch in sorted(e for e in epochs if e is not None)]
    if names:
        names += ["last", "best"]
    return [n for n in names if n.startswith(prefix)] + directories(prefix)


def metrics(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Return the names of the metrics of a run's last checkpoint; argcomplete calls it."""
    words: list[str] = parsed_args.words if "words" in parsed_args else [parsed_args.dir]
    return _metrics_of(words)


def metrics_of_runs(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Return lists of metrics of several runs that begin so: ``loss,ac``; argcomplete calls it."""
    before, comma, _begun = prefix.rpartition(",")
    given = before.split(",")
    names = dict.fromkeys(name for run in parsed_args.runs or () for name in _metrics_of([run]))
    return [f"{before}{comma}{name}" for name in names if name not in given]


def _metrics_of(words: list[str]) -> list[str]:
    from ray_imuckpt.repository.catalog import Catalog

    run = _run_of(words)
    if run is None:
        return []
    catalog = Catalog(run)
    found: list[str] = _quiet(lambda: [*catalog.manifest(catalog.committed()[-1]).metrics], [])
    return [] if "$" in found else found  # of dicts whose keys are not those of the metrics


def _run_of(words: list[str]) -> Storage | None:
    """Return the run directory that words before have named, if it is on this machine's disk."""
    best = naming.Rule("", "min") if "best" in words else None
    named = _quiet(lambda: naming.names(words, best), [])
    if not named:
        return None
    name = _quiet(lambda: absolute(naming.run_of(named[-1].directory)), "")
    return open_storage(name) if is_path(name) else None


def _quiet(step: Callable[[], Any], otherwise: Any) -> Any:
    """Return what a step returns; on an error something else: the shell shows no errors."""
    try:
        return step()
    except Exception:  # noqa: BLE001 - whatever it is, there is nothing to complete
        return otherwise
