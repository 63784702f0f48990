"""obstore's errors as Python's, without secrets. Touches obstore."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from ray_imuckpt.storage.engines.protocol import RefusedError

_SECRETS = re.compile(r"(?i)((?:sig|signature|token|credential|x-amz-[a-z-]+)=)[^&\s\"')]+")


@contextlib.contextmanager
def raised_as_oserror(path: str) -> Iterator[None]:
    """Raise an error of obstore's as one of Python's, in one line and without secrets."""
    from obstore.exceptions import (
        AlreadyExistsError,
        BaseError,
        PermissionDeniedError,
        PreconditionError,
        UnauthenticatedError,
    )

    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {_short(error)}") from _bare(error)
    except (AlreadyExistsError, PreconditionError) as error:
        raise RefusedError(f"{path}: {_short(error)}") from _bare(error)
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise PermissionError(f"{path}: {_short(error)}") from _bare(error)
    except BaseError as error:
        text = _short(error)
        if "status code: 403" in text:
            raise PermissionError(f"{path}: {text}") from _bare(error)
        if "status code: 404" in text:
            raise FileNotFoundError(f"{path}: {text}") from _bare(error)
        raise OSError(f"{path}: {text}") from _bare(error)


def _short(error: BaseException) -> str:
    return _SECRETS.sub(r"\1…", str(error).partition("\n")[0])


def _bare(error: BaseException) -> BaseException:
    """Return the same error with a short text: it is shown as the cause."""
    return type(error)(_short(error)).with_traceback(error.__traceback__)
