"""What is asked of a simulated store, read from HTTP. Touches nothing."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

_ACCESS_KEY = re.compile(r"Credential=([^/,]+)/")


@dataclass(frozen=True)
class Request:
    """One request, without its body.

    Attributes:
        kind: ``put``, ``get``, ``head``, ``delete``, ``copy``, ``list``, ``delete many``, ``list
            uploads``, ``create upload``, ``upload part``, ``copy part``, ``complete upload``,
            ``abort upload``, ``list parts``, ``list buckets``, ``create bucket``, ``head bucket``,
            or ``unknown``.
        bucket: The bucket's name.
        key: The object's; empty for what is asked of a bucket.
        query: The URL's.
        headers: By their names in lower case.
    """

    kind: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]

    @property
    def access_key(self) -> str:
        """Return the access key that the request was signed with, empty for none."""
        found = _ACCESS_KEY.search(self.headers.get("authorization", ""))
        return found[1] if found else ""


def parse(method: str, target: str, headers: Mapping[str, str]) -> Request:
    """Return what an HTTP request asks, in path style: ``/<bucket>/<key>?<query>``."""
    path, _, text = target.partition("?")
    bucket, _, key = urllib.parse.unquote(path.lstrip("/")).partition("/")
    query = dict(urllib.parse.parse_qsl(text, keep_blank_values=True))
    headers = {name.lower(): value for name, value in headers.items()}
    kind = _kind_of_object(method, query, headers) if key else _kind_of_bucket(method, query)
    if not bucket:
        kind = "list buckets"
    return Request(kind, bucket, key, query, headers)


def _kind_of_bucket(method: str, query: Mapping[str, str]) -> str:
    if method == "GET":
        return "list uploads" if "uploads" in query else "list"
    kinds = {"PUT": "create bucket", "HEAD": "head bucket", "POST": "delete many"}
    return kinds.get(method, "unknown")


def _kind_of_object(method: str, query: Mapping[str, str], headers: Mapping[str, str]) -> str:
    if method == "POST":
        return "create upload" if "uploads" in query else "complete upload"
    if method == "PUT" and "x-amz-copy-source" in headers:
        return "copy part" if "partNumber" in query else "copy"
    if "uploadId" in query:
        kinds = {"PUT": "upload part", "DELETE": "abort upload", "GET": "list parts"}
        return kinds.get(method, "unknown")
    kinds = {"PUT": "put", "GET": "get", "HEAD": "head", "DELETE": "delete"}
    return kinds.get(method, "unknown")
