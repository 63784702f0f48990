"""Tables of the errors that pass, and of those that stay, one for each engine. Touches nothing.

What is not in a table stays: an unknown error is raised at once, not after two minutes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ray_imuckpt.storage.engines.protocol import Fault

# Codes of answers that ask for another try, by HTTP and by name: S3's, and those of others alike.
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_PASSING_CODES = frozenset(
    {"BandwidthLimitExceeded", "InternalError", "InternalServerError", "OperationAborted"}
    | {"OperationTimedOut", "RequestLimitExceeded", "RequestTimeout", "RequestTimeTooSkewed"}
    | {"ServerBusy", "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException"}
    | {"ThrottledException", "TooManyRequests", "TransactionInProgressException", "IncompleteBody"}
)
_LOST_CODES = frozenset({"InvalidPart", "NoSuchUpload"})
_EXPIRED_CODES = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
    | {"InvalidAuthenticationInfo"}
)

# Of fsspec's file systems: names of classes, so that no library is imported for their sake.
_PASSING_CLASSES = frozenset(
    {"ConnectionError", "TimeoutError", "FSTimeoutError", "IncompleteRead"}  # Python's, fsspec's
    | {"ClientConnectionError", "ClientPayloadError", "ServerDisconnectedError"}  # aiohttp's
    | {"HTTPClientError", "ConnectionClosedError", "EndpointConnectionError"}  # botocore's
    | {"ConnectTimeoutError", "ReadTimeoutError", "ResponseParserError", "ResponseStreamingError"}
    | {"ServiceRequestError", "ServiceResponseError", "IncompleteReadError"}  # Azure's
    | {"ChecksumError", "SSHException", "ConnectionLost"}  # gcsfs's, paramiko's, asyncssh's
)
_EXPIRED_CLASSES = frozenset({"TokenRetrievalError", "RefreshError"})

# Of obstore, which has one class for nearly all, and tells by its text.
_OBSTORE_STATUS = re.compile(r"status code: (\d{3})")
_OBSTORE_CODE = re.compile(r"<(?:Code|code)>(\w+)<")
_OBSTORE_PASSING = re.compile(
    r"error sending request|error decoding response body|operation timed out|connection closed"
    r"|connection reset|connection error|request or response body error|broken pipe"
    r"|incomplete message|unexpected end of file|dispatch task is gone",
    re.IGNORECASE,
)


def of_fsspec(error: BaseException) -> Fault:
    """Return what to make of an error of an fsspec file system, or of what caused it."""
    for cause in _chain(error):
        answer = getattr(cause, "response", None)
        code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
        code = code or getattr(cause, "error_code", None)
        status = getattr(cause, "status_code", None) or getattr(cause, "code", None)
        names = {base.__name__ for base in type(cause).__mro__}
        if str(code) in _EXPIRED_CODES or names & _EXPIRED_CLASSES or status == 401:
            return Fault.EXPIRED
        if str(code) in _LOST_CODES:
            return Fault.LOST
        if str(code) in _PASSING_CODES or _passes(code) or _passes(status):
            return Fault.PASSING
        if names & _PASSING_CLASSES:
            return Fault.PASSING
    return Fault.LASTING


def of_obstore(error: BaseException) -> Fault:
    """Return what to make of an error of obstore's."""
    for cause in _chain(error):
        text = str(cause)
        codes = set(_OBSTORE_CODE.findall(text))
        status = {int(found) for found in _OBSTORE_STATUS.findall(text)}
        if codes & _EXPIRED_CODES or 401 in status:
            return Fault.EXPIRED
        if codes & _LOST_CODES:
            return Fault.LOST
        if codes & _PASSING_CODES or status & _PASSING_STATUS:
            return Fault.PASSING
        if not status and _OBSTORE_PASSING.search(text):
            return Fault.PASSING
    return Fault.LASTING


def _passes(status: object) -> bool:
    text = str(status)
    return text.isdecimal() and int(text) in _PASSING_STATUS


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__
