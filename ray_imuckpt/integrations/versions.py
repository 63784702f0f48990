"""The versions of a framework that an adapter was tried with, and the names it needs of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ray_imuckpt.errors import ImuckptError


def check(framework: str, version: str, tried: tuple[str, ...], *, untried_version: bool) -> None:
    """Check that an adapter was tried with this version of its framework.

    An adapter reads and sets what its framework calls private: in another version that may be gone,
    which is an error by itself, or mean something else, which would silently be another run.

    Args:
        framework: Its name.
        version: Its version, ``"2.6.6"`` for example.
        tried: The minor versions that the tests were run with, ``"2.6"`` for example.
        untried_version: Whether the user takes any other one upon themselves.

    Raises:
        ImuckptError: It is another minor version.
    """
    minor = ".".join(re.findall(r"\d+", version)[:2])
    if minor in tried or untried_version:
        return
    wanted = " or ".join(tried)
    raise ImuckptError(
        f"{framework} {version} was not tried with ray_imuckpt, which reads what {framework} calls "
        f"private and would not notice that it means something else: a resumed run could be "
        f"another one. It was tried with {wanted}.",
        hint=f"Install {framework.lower()} {wanted}, or pass untried_version=True and compare a "
        "run that you have interrupted with one that you have not.",
    )


def check_names(framework: str, where: str, owner: Any, names: Iterable[str]) -> None:
    """Check that an object of a framework has what an adapter reads, sets or overrides.

    What is only set, or overridden, would be missed by nobody: the run would be another one.

    Args:
        framework: The framework's name.
        where: The object, in words of the framework.
        owner: The object or class.
        names: The names of the attributes.

    Raises:
        ImuckptError: It lacks some of them.
    """
    lacking = [name for name in names if not hasattr(owner, name)]
    if lacking:
        raise _another(framework, f"{where} has no {', '.join(lacking)}")


def check_parameters(
    framework: str, where: str, parameters: Mapping[str, Any], names: tuple[str, ...]
) -> None:
    """Check that a method that an adapter overrides is called with what it is made for.

    Args:
        framework: The framework's name.
        where: The method, in words of the framework.
        parameters: The parameters by name, with ``self``.
        names: The names that the first of them should have, in order, without ``self``.

    Raises:
        ImuckptError: They have others.
    """
    here = tuple(parameters)[1:]
    if here[: len(names)] != names:
        raise _another(framework, f"{where} takes ({', '.join(here)}), not ({', '.join(names)})")


def _another(framework: str, what: str) -> ImuckptError:
    return ImuckptError(
        f"This version of {framework} is another one than ray_imuckpt was tried with: {what}.",
        hint="docs/versions.md says which versions were tried; install one of them.",
    )
