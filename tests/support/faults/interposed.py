"""A storage that lets something happen right before chosen calls; the calls themselves are real."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from ray_imuckpt import Checkpointer
from ray_imuckpt.saving import writer
from ray_imuckpt.storage import Storage, open_storage

METHODS = frozenset(
    name for name in vars(Storage) if not name.startswith("_") and callable(vars(Storage)[name])
)


class Interposed:
    """A `Storage` around another one.

    Args:
        inner: Does the work.
        before: Called before each call with the method's name and the call's first argument.
        directory: What stands before names in those calls: where `inner` is the child of another.
    """

    def __init__(
        self, inner: Storage, before: Callable[[str, str], None], directory: str = ""
    ) -> None:
        self._inner, self._before, self._directory = inner, before, directory

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in METHODS:
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self._before(name, self._directory + str(arguments[0]) if arguments else "")
            return found(*arguments, **options)

        return call

    def child(self, name: str) -> Interposed:
        """Return a directory in this one, its calls interposed as well."""
        return Interposed(self._inner.child(name), self._before, f"{self._directory}{name}/")

    def parent(self) -> Interposed:
        """Return the directory that holds this one, its calls interposed as well."""
        return Interposed(self._inner.parent(), self._before)


def checkpointer_on(
    url: str, before: Callable[[str, str], None], continue_from: Any = "last"
) -> Checkpointer:
    """Return a Checkpointer whose storage calls this before each call."""
    made = Checkpointer(None, continue_from=continue_from, blocking=True)
    made._opened = Interposed(open_storage(url), before)
    return made


class Once:
    """Lets another process act before one call.

    Args:
        act: What it does.
        count: Before which call, counted from 1 among those of `method`.
        method: Of `Storage`; of all methods if it is empty.

    Attributes:
        call: The method and the name that it was called with; ``None`` until then.
    """

    def __init__(self, act: Callable[[], Any], count: int = 1, method: str = "") -> None:
        assert method in {"", *METHODS}, method
        self._act, self._left, self._method = act, count, method
        self.call: tuple[str, str] | None = None

    def __call__(self, method: str, name: str) -> None:
        """Count a call, and act if it is the one."""
        if self.call is None and self._method in ("", method):
            self._left -= 1
            if self._left == 0:
                self.call = method, name
                with another_process():
                    self._act()


@contextlib.contextmanager
def another_process() -> Iterator[None]:
    """Forget, while this lasts, what this process knows of its saves in flight."""
    with mock.patch.object(writer, "_ACTIVE", set()):
        yield
