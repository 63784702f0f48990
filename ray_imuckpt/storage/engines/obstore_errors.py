"""obstore's errors as Python's, without secrets. Touches obstore."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from ray_imuckpt.storage.engines.protocol import RefusedError
from ray_imuckpt.storage.failures import ExhaustedError

_SECRETS = re.compile(r"(?i)((?:sig|signature|token|credential|x-amz-[a-z-]+)=)[^&\s\"')]+")

_DETAILS = re.compile(r"<(?!Code>|Message>)([A-Za-z]+)>[^<]*</\1>", re.IGNORECASE)  # keys, say
_REQUEST = re.compile(r"Error performing (\w+) (\S+) in [^-]*? - (.*)")
_REPEATED = re.compile(r" in (\S+), after (\d+) retries, max_retries: (\d+)")
_REFUSED = re.compile(r"status code: 4\d\d")  # which obstore does not ask for again
_CODE = re.compile(r"<(?:Code|code)>([^<]*)<")
_MESSAGE = re.compile(r"<(?:Message|message)>([^<]*)<")


@contextlib.contextmanager
def raised_as_oserror(path: str) -> Iterator[None]:
    """Raise an error of obstore's as one of Python's, in one line and without secrets."""
    import obstore  # as a whole: while another thread does so, its exceptions are a hollow package

    known = obstore.exceptions
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {_short(error)}") from _bare(error)
    except (known.AlreadyExistsError, known.PreconditionError) as error:
        raise RefusedError(f"{path}: {_short(error)}") from _bare(error)
    except (known.PermissionDeniedError, known.UnauthenticatedError) as error:
        raise PermissionError(f"{path}: {_short(error)}") from _bare(error)
    except known.BaseError as error:
        text = _short(error)
        if "status code: 403" in text:
            raise PermissionError(f"{path}: {text}") from _bare(error)
        if "status code: 404" in text:
            raise FileNotFoundError(f"{path}: {text}") from _bare(error)
        raise _of_class(error)(f"{path}: {text}") from _bare(error)


def _of_class(error: BaseException) -> type[OSError]:
    """Return the class that says whether obstore has made the request as often as it may."""
    repeated = _REPEATED.search(_line(error))
    if repeated is None:
        return OSError
    in_vain = repeated[2] == repeated[3] or _REFUSED.search(_line(error)) is None
    return ExhaustedError if in_vain else OSError


def _short(error: BaseException) -> str:
    """Return what was asked and what the answer says, without obstore's words around it."""
    text = _line(error)
    request = _REQUEST.search(text)
    if request is None:
        return text
    method, url, answer = request.groups()
    code, message = _CODE.search(answer), _MESSAGE.search(answer)
    status = answer.partition(": <")[0].removeprefix("Server returned non-2xx ")
    says = [status, code[1] if code else "", message[1] if message else ""]
    repeated = _REPEATED.search(text)
    tries = f" ({int(repeated[2]) + 1} tries in {repeated[1]})" if repeated else ""
    return f"{method} {url}: {', '.join(word for word in says if word)}{tries}"


def _line(error: BaseException) -> str:
    return _SECRETS.sub(r"\1…", _DETAILS.sub("", str(error).partition("\n")[0]))


def _bare(error: BaseException) -> BaseException:
    """Return the same error, which is shown as the cause, in one line."""
    return type(error)(_line(error)).with_traceback(error.__traceback__)
