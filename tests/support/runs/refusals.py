"""What a call raises, as data that a process can tell another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray_imuckpt import ImuckptError
from support.runs.same_run import digest


def refused(call: Callable[[], Any], module: Any = None) -> dict[str, Any]:
    """Return what it raises, and whether the module was changed."""
    before = None if module is None else digest(module.state_dict())
    try:
        call()
    except (ImuckptError, ValueError, TypeError) as error:
        after = None if module is None else digest(module.state_dict())
        return {"type": type(error).__name__, "text": str(error), "same": before == after}
    return {"type": None, "text": "", "same": False}
