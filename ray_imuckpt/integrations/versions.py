"""The versions of a framework that an adapter was tried with. Touches nothing."""

from __future__ import annotations

import re

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
