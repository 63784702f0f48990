"""The error tree. Touches nothing.

    ImuckptError                      anything this package raises on purpose
    ├── CheckpointNotFoundError       (FileNotFoundError) pick another epoch or directory
    ├── CorruptCheckpointError        bytes are not what was committed: use another checkpoint
    ├── UnsupportedFormatError        written by a newer version: upgrade
    ├── StateMismatchError            (ValueError) the objects differ from what was saved
    ├── StorageError                  (OSError) storage cannot be reached, listed or written
    ├── SaveFailedError               nothing was committed (unless it says that it may be): retry
    ├── UnsupportedStateError         (TypeError) a value that cannot be stored without pickle
    └── GangBrokenError               a rank died or did not come: start the gang again

Every error survives pickling (Ray moves exceptions between processes) and can be sent to the
other ranks of a gang as plain data (`to_wire`, `from_wire`), so that all ranks raise the same
error. Wrong arguments are plain ``ValueError`` and ``TypeError``, as everywhere in Python.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

P = ParamSpec("P")
T = TypeVar("T")


class ImuckptError(Exception):
    """Base of all errors of this package.

    Args:
        message: What went wrong, one sentence.
        url: The checkpoint, file or directory concerned.
        epoch: The epoch concerned.
        rank: The rank on which it happened.
        hint: What to do next.
    """

    def __init__(
        self,
        message: str,
        *,
        url: str | None = None,
        epoch: int | None = None,
        rank: int | None = None,
        hint: str | None = None,
    ) -> None:
        self.message = message
        self.url = url
        self.epoch = epoch
        self.rank = rank
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        facts = {"url": self.url, "epoch": self.epoch, "rank": self.rank}
        where = ", ".join(f"{name}={value}" for name, value in facts.items() if value is not None)
        text = self.message + (f" [{where}]" if where else "")
        return text + (f"\n  What to do: {self.hint}" if self.hint else "")

    def __reduce__(self) -> tuple[Any, ...]:
        return (from_wire, (to_wire(self),))

    def facts(self) -> dict[str, Any]:
        """Return all but the message, in JSON's types, by the names of the arguments."""
        return {"url": self.url, "epoch": self.epoch, "rank": self.rank, "hint": self.hint}


class CheckpointNotFoundError(ImuckptError, FileNotFoundError):
    """There is no committed checkpoint where one was asked for."""


class CorruptCheckpointError(ImuckptError):
    """A committed checkpoint whose bytes are missing, cut or altered."""


class UnsupportedFormatError(ImuckptError):
    """A checkpoint of a format version that this release does not know."""


class StateMismatchError(ImuckptError, ValueError):
    """The saved state does not fit the object it is to be loaded into.

    Args:
        missing: Keys that the object has and the checkpoint lacks.
        unexpected: Keys that the checkpoint has and the object lacks.
        wrong_shape: Key to (shape in the checkpoint, shape in the object).
        **facts: As for `ImuckptError`.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: list[str] | None = None,
        unexpected: list[str] | None = None,
        wrong_shape: Mapping[str, tuple[list[int], list[int]]] | None = None,
        **facts: Any,
    ) -> None:
        self.missing = list(missing or [])
        self.unexpected = list(unexpected or [])
        self.wrong_shape = dict(wrong_shape or {})
        super().__init__(message, **facts)

    def __str__(self) -> str:
        shapes = [f"{k}: saved {s}, here {h}" for k, (s, h) in self.wrong_shape.items()]
        parts = [super().__str__()]
        for title, keys in (
            ("missing from the checkpoint", self.missing),
            ("not expected here", self.unexpected),
            ("of another shape", shapes),
        ):
            if keys:
                parts.append(f"  {title} ({len(keys)}): " + "; ".join(keys))
        return "\n".join(parts)

    def facts(self) -> dict[str, Any]:
        """Return all but the message; see `ImuckptError.facts`."""
        return {
            **super().facts(),
            "missing": self.missing,
            "unexpected": self.unexpected,
            "wrong_shape": self.wrong_shape,
        }


class StorageError(ImuckptError, OSError):
    """A storage that is missing, or that cannot be reached, listed or written."""


class SaveFailedError(ImuckptError):
    """A save did not commit. What was committed before is untouched."""


class UnsupportedStateError(ImuckptError, TypeError):
    """A value that cannot be stored, or sent to a worker; the message holds the path to it."""


class GangBrokenError(ImuckptError):
    """The ranks cannot meet any more: one has died, left, or did not come within the timeout."""


_CLASSES: dict[str, type[Exception]] = {
    cls.__name__: cls
    for cls in (
        ImuckptError,
        CheckpointNotFoundError,
        CorruptCheckpointError,
        UnsupportedFormatError,
        StateMismatchError,
        StorageError,
        SaveFailedError,
        UnsupportedStateError,
        GangBrokenError,
        ValueError,
        TypeError,
    )
}


@runtime_checkable
class _OfDirectory(Protocol):
    """Whatever says which directory it is about, as a `Checkpointer` does."""

    dir: str | None


def adopted(error: BaseException, **facts: Any) -> ImuckptError:
    """Return an error of this tree for a foreign one (of the storage, of torch, of a user's class).

    Args:
        error: What was raised.
        **facts: As for `ImuckptError`.
    """
    kind: type[ImuckptError] = ImuckptError
    hint = "The traceback above this one shows where it was raised."
    if isinstance(error, ImportError):
        hint = "Install what it names."
    elif isinstance(error, OSError):
        kind = StorageError
        hint = "Can the storage be reached, and do these credentials allow it? Then try again."
    return kind(f"{type(error).__name__}: {error}", **{"hint": hint, **facts})


@contextlib.contextmanager
def located(url: str, *, epoch: int | None = None, rank: int | None = None) -> Iterator[None]:
    """Let nothing out that is not of this tree, and nothing that does not say where it happened.

    Args:
        url: The checkpoint or directory concerned.
        epoch: The epoch concerned.
        rank: This rank.
    """
    try:
        yield
    except ImuckptError as error:
        error.url = error.url or url
        error.epoch = epoch if error.epoch is None else error.epoch
        error.rank = rank if error.rank is None else error.rank
        raise
    except Exception as error:  # of whatever library: users handle one tree
        raise adopted(error, url=url, epoch=epoch, rank=rank) from error


def public(method: Callable[P, T]) -> Callable[P, T]:
    """Make a public method raise errors of this tree only, and those of wrong arguments."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except (ImuckptError, ValueError, TypeError):
            raise
        except Exception as error:  # of whatever library: users handle one tree
            about = args[0] if args else None
            url = about.dir if isinstance(about, _OfDirectory) else None
            raise adopted(error, url=url) from error

    return call


def to_wire(error: BaseException) -> dict[str, Any]:
    """Return the error as plain data (JSON types only), to be sent to another rank or process."""
    kind = next((c.__name__ for c in type(error).__mro__ if c.__name__ in _CLASSES), None)
    if kind is None:  # a foreign error: its type is named in the text, never rebuilt from a name
        error = adopted(error)
        kind = type(error).__name__
    if not isinstance(error, ImuckptError):
        return {"type": kind, "message": str(error)}
    facts = {name: value for name, value in error.facts().items() if value not in (None, [], {})}
    return {"type": kind, "message": error.message, **facts}


def from_wire(wire: Mapping[str, Any]) -> Exception:
    """Return the error that `to_wire` described."""
    cls = _CLASSES[wire["type"]]
    if issubclass(cls, ImuckptError):
        facts = {name: value for name, value in wire.items() if name not in ("type", "message")}
        if "wrong_shape" in facts:
            facts["wrong_shape"] = {k: (v[0], v[1]) for k, v in facts["wrong_shape"].items()}
        return cls(wire["message"], **facts)
    return cls(wire["message"])
