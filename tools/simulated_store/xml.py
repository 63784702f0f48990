"""The XML that S3 speaks: what is read from it, and what is written. Touches nothing."""

from __future__ import annotations

import time
import urllib.parse
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from xml.sax.saxutils import escape

from tools.simulated_store.holdings import RefusalError, StoredObject, Upload


def element(name: str, *inside: str) -> str:
    """Return an element; what is inside is XML already."""
    return f"<{name}>{''.join(inside)}</{name}>"


def text(name: str, value: object) -> str:
    """Return an element that holds a value."""
    return element(name, escape(str(value)))


def document(name: str, *inside: str) -> bytes:
    """Return a whole document."""
    return ('<?xml version="1.0" encoding="UTF-8"?>' + element(name, *inside)).encode()


def moment(seconds: float) -> str:
    """Return a time as S3 writes it inside of XML."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


def error(refusal: RefusalError, key: str) -> bytes:
    """Return what is said of a request that is refused."""
    return document(
        "Error",
        text("Code", refusal.code),
        text("Message", refusal.message),
        text("Key", key),
        text("RequestId", "simulated"),
    )


def quoting(query: dict[str, str]) -> Callable[[str], str]:
    """Return how names are written into a listing."""
    if query.get("encoding-type") == "url":
        return lambda name: urllib.parse.quote(name, safe="/")
    return str


def contents(key: str, found: StoredObject) -> str:
    """Return an object's entry in a listing."""
    return element(
        "Contents",
        text("Key", key),
        text("LastModified", moment(found.modified)),
        text("ETag", found.tag),
        text("Size", found.size),
        text("StorageClass", "STANDARD"),
    )


def upload(key: str, found: Upload) -> str:
    """Return an upload's entry in a listing."""
    return element(
        "Upload",
        text("Key", key),
        text("UploadId", found.id),
        text("Initiated", moment(found.begun)),
    )


def texts(body: bytes, inside: str, *names: str) -> Iterable[tuple[str, ...]]:
    """Yield the texts of some children of each element called `inside`, "" for one that lacks.

    Raises:
        RefusalError: The body is no XML.
    """
    try:
        root = ET.fromstring(body)  # noqa: S314 - from our own client, over the loopback
    except ET.ParseError as failure:
        raise RefusalError(400, "MalformedXML", str(failure)) from failure
    for found in root.iter():
        if _local(found.tag) == inside:
            children = {_local(child.tag): child.text or "" for child in found}
            yield tuple(children.get(name, "") for name in names)


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
