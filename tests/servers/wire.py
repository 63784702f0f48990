"""Plain HTTP to a store, without a client that would try again. Touches sockets."""

from __future__ import annotations

import contextlib
import http.client
import xml.etree.ElementTree as ET


class Wire:
    """Plain HTTP to a store, without a client that would try again."""

    def __init__(self, endpoint: str) -> None:
        self._connection = http.client.HTTPConnection(endpoint.removeprefix("http://"), timeout=300)

    def ask(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Return status, body and headers of the answer; ``_`` in a header's name is ``-``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            self._connection.request(method, path, body, named)
            answer = self._connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())
        except (OSError, http.client.HTTPException):
            self._connection.close()  # the next request opens another
            raise

    def status(self, method: str, path: str, body: bytes = b"", **headers: str) -> int:
        """Return the status alone."""
        return self.ask(method, path, body, **headers)[0]

    def texts(self, path: str, name: str) -> list[str]:
        """Return the texts of the elements of an answer that are called so."""
        root = ET.fromstring(self.ask("GET", path)[1])
        return [found.text or "" for found in root.iter(name)]

    def begin(self, key: str) -> str:
        """Begin an upload and return its id."""
        root = ET.fromstring(self.ask("POST", f"/bucket/{key}?uploads")[1])
        return root.findtext("UploadId") or ""

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def ask(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """Return the body of a server's answer, which is asked once; headers as for `Wire.ask`.

    Raises:
        FileNotFoundError: The answer is an error.
    """
    wire = Wire(f"http://127.0.0.1:{port}")
    with contextlib.closing(wire):
        status, answer, _ = wire.ask(method, path, body, **headers)
    if status >= 400:
        raise FileNotFoundError(f"{method} {path}: {answer.decode()}")
    return answer


def completion(*parts: tuple[int, str]) -> bytes:
    """Return what completes an upload of these numbers and tags."""
    inside = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>" for number, tag in parts
    )
    return f"<CompleteMultipartUpload>{inside}</CompleteMultipartUpload>".encode()


def send_part(wire: Wire, key: str, upload: str, number: int, data: bytes) -> str:
    """Send a part and return its tag."""
    path = f"/bucket/{key}?partNumber={number}&uploadId={upload}"
    return wire.ask("PUT", path, data)[2]["ETag"]
