"""What a simulated store does for each kind of request, and answers. Touches nothing."""

from __future__ import annotations

import email.utils
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tools.simulated_store import listings, xml
from tools.simulated_store.holdings import Condition, Holdings, RefusalError, StoredObject
from tools.simulated_store.requests import Request
from tools.simulated_store.settings import Settings

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_XML = {"Content-Type": "application/xml"}


@dataclass(frozen=True)
class Answer:
    """An answer over HTTP.

    Attributes:
        status: The status.
        body: The body, in pieces.
        headers: The headers besides Content-Length.
        length: What Content-Length says where it is not the body's; of a HEAD.
    """

    status: int
    body: Sequence[bytes | memoryview] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None

    @property
    def size(self) -> int:
        """Return the bytes of the body."""
        return sum(map(len, self.body))


@dataclass(frozen=True)
class Asked:
    """A request with all that it takes to answer it.

    Attributes:
        request: The request.
        body: Its body, in pieces.
        settings: How the store behaves.
        now: The store's time in seconds.
    """

    request: Request
    body: Sequence[memoryview]
    settings: Settings
    now: float

    @property
    def document(self) -> bytes:
        """Return the body as one, where it is XML."""
        return b"".join(self.body)

    @property
    def condition(self) -> Condition:
        """Return the condition of a put."""
        headers = self.request.headers
        if not self.settings.conditions:
            return Condition()
        return Condition(headers.get("if-none-match") == "*", headers.get("if-match"))


def error(refusal: RefusalError, key: str, status: int | None = None) -> Answer:
    """Return the answer that refuses, or with another status hides the refusal in its body."""
    return Answer(status or refusal.status, [xml.error(refusal, key)], _XML)


def answer(holdings: Holdings, asked: Asked) -> Answer:
    """Do what is asked and return the answer; a refusal is an answer too."""
    request = asked.request
    try:
        return _ANSWERS.get(request.kind, _unknown)(holdings, asked)
    except RefusalError as refusal:
        if request.kind in ("head", "head bucket"):  # whose answers have no bodies
            return Answer(refusal.status)
        return error(refusal, request.key)


def _unknown(_holdings: Holdings, asked: Asked) -> Answer:
    raise RefusalError(501, "NotImplemented", f"{asked.request.kind} is not simulated")


def _list_buckets(holdings: Holdings, _asked: Asked) -> Answer:
    buckets = [
        xml.element("Bucket", xml.text("Name", n), xml.text("CreationDate", xml.moment(0)))
        for n in holdings.buckets()
    ]
    return Answer(
        200, [xml.document("ListAllMyBucketsResult", xml.element("Buckets", *buckets))], _XML
    )


def _create_bucket(holdings: Holdings, asked: Asked) -> Answer:
    holdings.make_bucket(asked.request.bucket)
    return Answer(200)


def _head_bucket(holdings: Holdings, asked: Asked) -> Answer:
    holdings.bucket(asked.request.bucket)
    return Answer(200)


def _list(holdings: Holdings, asked: Asked) -> Answer:
    return Answer(200, [listings.objects(holdings, asked.request, asked.settings)], _XML)


def _list_uploads(holdings: Holdings, asked: Asked) -> Answer:
    return Answer(200, [listings.uploads(holdings, asked.request, asked.settings)], _XML)


def _delete_many(holdings: Holdings, asked: Asked) -> Answer:
    keys = [key for (key,) in xml.texts(asked.document, "Object", "Key")]
    for key in keys:
        holdings.delete(asked.request.bucket, key)
    deleted = [xml.element("Deleted", xml.text("Key", key)) for key in keys]
    return Answer(200, [xml.document("DeleteResult", *deleted)], _XML)


def _put(holdings: Holdings, asked: Asked) -> Answer:
    made = holdings.made(asked.body, asked.now)
    holdings.put(asked.request.bucket, asked.request.key, made, asked.condition)
    return Answer(200, headers={"ETag": made.tag})


def _source(holdings: Holdings, asked: Asked) -> StoredObject:
    where = urllib.parse.unquote(asked.request.headers["x-amz-copy-source"]).lstrip("/")
    bucket, _, key = where.partition("/")
    return holdings.get(bucket, key)


def _copied(name: str, made: StoredObject) -> Answer:
    inside = xml.text("ETag", made.tag), xml.text("LastModified", xml.moment(made.modified))
    return Answer(200, [xml.document(name, *inside)], _XML)


def _copy(holdings: Holdings, asked: Asked) -> Answer:
    made = holdings.made(_source(holdings, asked).pieces, asked.now)
    holdings.put(asked.request.bucket, asked.request.key, made, asked.condition)
    return _copied("CopyObjectResult", made)


def _copy_part(holdings: Holdings, asked: Asked) -> Answer:
    source = _source(holdings, asked)
    begin, end = _range(asked.request.headers.get("x-amz-copy-source-range", ""), source.size)
    made = holdings.made(source.between(begin, end), asked.now)
    query = asked.request.query
    holdings.upload(query["uploadId"]).parts[int(query["partNumber"])] = made
    return _copied("CopyPartResult", made)


def _create_upload(holdings: Holdings, asked: Asked) -> Answer:
    begun = holdings.begin_upload(asked.request.bucket, asked.request.key, asked.now)
    inside = xml.text("Bucket", begun.bucket), xml.text("Key", begun.key)
    body = xml.document("InitiateMultipartUploadResult", *inside, xml.text("UploadId", begun.id))
    return Answer(200, [body], _XML)


def _upload_part(holdings: Holdings, asked: Asked) -> Answer:
    query = asked.request.query
    made = holdings.made(asked.body, asked.now)
    holdings.upload(query["uploadId"]).parts[int(query["partNumber"])] = made
    return Answer(200, headers={"ETag": made.tag})


def _list_parts(holdings: Holdings, asked: Asked) -> Answer:
    parts = sorted(holdings.upload(asked.request.query["uploadId"]).parts.items())
    found = [
        xml.element("Part", xml.text("PartNumber", n), xml.text("ETag", p.tag)) for n, p in parts
    ]
    return Answer(200, [xml.document("ListPartsResult", *found)], _XML)


def _complete_upload(holdings: Holdings, asked: Asked) -> Answer:
    wanted = [
        (int(number), tag)
        for number, tag in xml.texts(asked.document, "Part", "PartNumber", "ETag")
    ]
    made = holdings.complete(asked.request.query["uploadId"], wanted, asked.now, asked.condition)
    inside = xml.text("Bucket", asked.request.bucket), xml.text("Key", asked.request.key)
    body = xml.document("CompleteMultipartUploadResult", *inside, xml.text("ETag", made.tag))
    return Answer(200, [body], _XML)


def _abort_upload(holdings: Holdings, asked: Asked) -> Answer:
    holdings.abort(asked.request.query["uploadId"])
    return Answer(204)


def _delete(holdings: Holdings, asked: Asked) -> Answer:
    holdings.delete(asked.request.bucket, asked.request.key)
    return Answer(204)


def _head(holdings: Holdings, asked: Asked) -> Answer:
    found = holdings.get(asked.request.bucket, asked.request.key)
    return Answer(200, headers=_headers(found), length=found.size)


def _get(holdings: Holdings, asked: Asked) -> Answer:
    found = holdings.get(asked.request.bucket, asked.request.key)
    wanted = asked.request.headers.get("range", "")
    if not wanted:
        return Answer(200, found.pieces, _headers(found))
    begin, end = _range(wanted, found.size)
    ranged = {"Content-Range": f"bytes {begin}-{end - 1}/{found.size}"}
    return Answer(206, found.between(begin, end), _headers(found) | ranged)


def _headers(found: StoredObject) -> dict[str, str]:
    return {
        "ETag": found.tag,
        "Last-Modified": email.utils.formatdate(found.modified, usegmt=True),
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }


def _range(wanted: str, size: int) -> tuple[int, int]:
    """Return where a range begins and ends, of ``bytes=1-5``, ``bytes=1-`` or ``bytes=-5``."""
    match = _RANGE.fullmatch(wanted)
    if match is None or not (match[1] or match[2]):
        return 0, size
    if not match[1]:
        return max(0, size - int(match[2])), size
    begin = int(match[1])
    if begin >= size:
        raise RefusalError(416, "InvalidRange", "The requested range is not satisfiable")
    return begin, min(size, int(match[2]) + 1) if match[2] else size


_ANSWERS: dict[str, Callable[[Holdings, Asked], Answer]] = {
    "list buckets": _list_buckets,
    "create bucket": _create_bucket,
    "head bucket": _head_bucket,
    "list": _list,
    "list uploads": _list_uploads,
    "delete many": _delete_many,
    "put": _put,
    "copy": _copy,
    "copy part": _copy_part,
    "create upload": _create_upload,
    "upload part": _upload_part,
    "list parts": _list_parts,
    "complete upload": _complete_upload,
    "abort upload": _abort_upload,
    "delete": _delete,
    "head": _head,
    "get": _get,
}
